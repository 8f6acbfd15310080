//! The files of the page, which are part of the program, with their media types and entity tags.

use std::sync::LazyLock;

use bytes::Bytes;

use crate::gate::conditional;
use crate::gate::negotiate;

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// One file of the page.
#[derive(Debug)]
pub(super) struct PageFile {
    /// The path below `/ui/`.
    pub(super) name: &'static str,
    pub(super) media: &'static str,
    pub(super) bytes: Bytes,
    pub(super) tag: String,
}

impl PageFile {
    /// The file of that name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        FILES.iter().find(|file| file.name == name)
    }
}

macro_rules! page_files {
    ($($media:expr => $name:literal $file:literal;)*) => {
        [$((
            $name,
            $media,
            include_bytes!(concat!("assets/", $file)).as_slice(),
        ),)*]
    };
}

/// The tags are computed once: the files are the same as long as the program is.
static FILES: LazyLock<Vec<PageFile>> = LazyLock::new(|| {
    let files = page_files! {
        negotiate::PAGE => "" "index.html";
        STYLE => "page.css" "page.css";
        PICTURE => "icon.svg" "icon.svg";
        SCRIPT => "main.js" "main.js";
        SCRIPT => "api.js" "api.js";
        SCRIPT => "changes.js" "changes.js";
        SCRIPT => "elements.js" "elements.js";
        SCRIPT => "events.js" "events.js";
        SCRIPT => "notices.js" "notices.js";
        SCRIPT => "plan.js" "plan.js";
        SCRIPT => "words.js" "words.js";
        SCRIPT => "view_backup.js" "view_backup.js";
        SCRIPT => "view_backups.js" "view_backups.js";
        SCRIPT => "view_operations.js" "view_operations.js";
        SCRIPT => "view_vms.js" "view_vms.js";
        SCRIPT => "dialogs.js" "dialogs.js";
    };
    let files = files.into_iter().map(|(name, media, bytes)| PageFile {
        name,
        media,
        bytes: Bytes::from_static(bytes),
        tag: conditional::entity_tag(bytes),
    });
    files.collect()
});

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served_under_its_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/gate/page/assets");
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let found: BTreeSet<String> = names.collect();
        let served = FILES.iter().map(|file| match file.name {
            "" => "index.html".to_owned(),
            name => name.to_owned(),
        });
        assert_eq!(found, served.collect(), "left: the folder, right: served");
        let tags: BTreeSet<&str> = FILES.iter().map(|file| file.tag.as_str()).collect();
        assert_eq!(tags.len(), FILES.len(), "each file has a tag of its own");
    }

    #[test]
    fn no_file_holds_what_the_policy_would_block_or_markup_made_of_text() {
        let blocked = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
            "srcdoc",
            "style=",
            "onclick=",
            "javascript:",
            "<script>",
            "http://",
            "https://",
            "document.cookie",
            "localStorage",
        ];
        for file in FILES.iter() {
            let text = str::from_utf8(&file.bytes).unwrap();
            // The name of a language of pictures is no address that is loaded.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in blocked {
                assert!(!text.contains(word), "{}: {word}", file.name);
            }
        }
    }
}
