//! `snapgate cluster`: the part of the gateway on this machine in its cluster.

use std::fmt::Write as _;

use clap::Args;
use clap::Subcommand;
use http::Method;
use serde_json::Value;

use crate::cli::CliError;
use crate::cli::admin_port::AdminPort;
use crate::cli::config_file::ConfigFile;
use crate::cli::output::Output;
use crate::config;

/// What to do with the membership.
#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Show which gateway is active, and what this one does
    Status {
        #[command(flatten)]
        arguments: MemberArguments,
    },
    /// Let another gateway become the active one
    StepDown {
        #[command(flatten)]
        arguments: MemberArguments,
    },
    /// Step down and leave the leadership to others until a restart
    Drain {
        #[command(flatten)]
        arguments: MemberArguments,
        /// Take part in elections again
        #[arg(long)]
        undo: bool,
    },
}

/// Arguments that every command on the membership has.
#[derive(Debug, Args)]
pub(super) struct MemberArguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command on the gateway of this machine, and prints its part in the cluster afterwards.
pub(super) fn run(command: &ClusterCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    let (method, path, arguments) = match command {
        ClusterCommand::Status { arguments } => (Method::GET, &["cluster"][..], arguments),
        ClusterCommand::StepDown { arguments } => {
            (Method::POST, &["cluster", "step-down"][..], arguments)
        }
        ClusterCommand::Drain { arguments, undo } => {
            let path = if *undo {
                &["cluster", "return"][..]
            } else {
                &["cluster", "drain"][..]
            };
            (Method::POST, path, arguments)
        }
    };
    let settings = config::load(&arguments.config.path(), &config::environment)?;
    let gateway = AdminPort::find(&settings, "no gateway runs on this configuration")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer: Value = runtime.block_on(gateway.ask(method, path, &[]))?;
    let text = if arguments.json {
        format!("{answer}\n")
    } else {
        describe(&answer)
    };
    Ok(output.print(&text)?)
}

fn describe(answer: &Value) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let is = |name: &str| answer.get(name).and_then(Value::as_bool) == Some(true);
    let mut lines = format!(
        "gateway   {} ({}{})\n",
        text("gateway").unwrap_or("?"),
        text("role").unwrap_or("?"),
        if is("is_drained") { ", drained" } else { "" }
    );
    let active = match (text("active"), text("address")) {
        (Some(name), Some(address)) => format!("{name} at {address}"),
        (Some(name), None) => name.to_owned(),
        (None, _) if is("is_reachable") => "none".to_owned(),
        (None, _) => "unknown: etcd does not answer".to_owned(),
    };
    let _infallible = writeln!(lines, "active    {active}");
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    if let Some(remaining) = number("lease_remaining_ms") {
        let _infallible = writeln!(lines, "lease     {remaining} ms unless renewed");
    }
    if let Some(unfinished) = number("unfinished") {
        let _infallible = writeln!(lines, "running   {unfinished} unfinished operations");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_part_of_a_gateway_is_described_in_lines() {
        let active = json!({"gateway": "a", "role": "active", "active": "a", "address": null, "is_reachable": true,
            "is_drained": false, "lease_remaining_ms": 7000, "unfinished": 2});
        assert_eq!(
            describe(&active),
            "gateway   a (active)\nactive    a\nlease     7000 ms unless renewed\nrunning   2 unfinished operations\n"
        );
        let standby = json!({"gateway": "b", "role": "standby", "active": "a", "address": "gw1:8443", "is_reachable": true, "is_drained": true});
        assert_eq!(
            describe(&standby),
            "gateway   b (standby, drained)\nactive    a at gw1:8443\n"
        );
        let cut_off = json!({"gateway": "b", "role": "standby", "is_reachable": false});
        assert!(
            describe(&cut_off).contains("etcd does not answer"),
            "says why"
        );
    }
}
