//! The help of the program: its commands grouped by the task of the reader.

use std::fmt::Write as _;

use clap::Command;

/// Groups of commands in the order of the help. Every other command is for administrators.
const GROUPS: [(&str, &[&str]); 2] = [
    (
        "Backups and restores, with any gateway",
        &["login", "vm", "backup", "status"],
    ),
    ("Running a gateway", &["demo", "init", "check", "serve"]),
];
const OTHERS: &str = "Administration";
/// Commands about the program itself.
const ABOUT: (&str, &[&str]) = ("About snapgate", &["version", "generate", "help"]);

/// The declaration with its help grouped.
pub(super) fn grouped(program: Command) -> Command {
    let mut built = program.clone();
    // Adds the command `help`.
    built.build();
    let text = commands_by_group(&built);
    program.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}\nOptions:\n{{options}}{{after-help}}"
    ))
}

fn commands_by_group(program: &Command) -> String {
    let all: Vec<&Command> = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .collect();
    let named = GROUPS.iter().chain([&ABOUT]);
    let placed: Vec<&str> = named.flat_map(|(_, names)| names.iter().copied()).collect();
    let others: Vec<&str> = all
        .iter()
        .map(|command| command.get_name())
        .filter(|name| !placed.contains(name))
        .collect();
    let width = all.iter().map(|command| command.get_name().len()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    let groups = GROUPS
        .into_iter()
        .chain([(OTHERS, others.as_slice()), ABOUT]);
    for (head, names) in groups {
        let found = names
            .iter()
            .filter_map(|name| all.iter().find(|command| command.get_name() == *name));
        let lines: Vec<String> = found
            .map(|command| {
                let about = command.get_about().map(ToString::to_string);
                let name = command.get_name();
                format!("  {name:<width$}  {}", about.unwrap_or_default())
            })
            .collect();
        if !lines.is_empty() {
            let _infallible = writeln!(text, "{head}:\n{}\n", lines.join("\n"));
        }
    }
    text.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_without_a_group_are_for_administrators() {
        let command = |name: &'static str| Command::new(name).about("What it does");
        let program = Command::new("snapgate")
            .subcommands([command("later"), command("vm"), command("serve")])
            .subcommand(command("hidden").hide(true));
        let text = commands_by_group(&program);
        let expected = "Backups and restores, with any gateway:\n  vm     What it does\n\nRunning a gateway:\n  serve  What it does\n\nAdministration:\n  later  What it does\n";
        assert_eq!(text, expected, "{text}");
    }
}
