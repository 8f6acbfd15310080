complete --keep-order --exclusive --command snapgate --arguments "(COMPLETE=fish snapgate -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token))"
