//! `snapgate vm`: the VMs that the caller may read.

use std::fmt::Write as _;

use clap::Args;
use clap::Subcommand;
use clap_complete::ArgValueCompleter;
use serde_json::json;

use crate::cli::CliError;
use crate::cli::client::completion::complete_vm;
use crate::cli::client::connection::ConnectionArguments;
use crate::cli::client::ending::Ending;
use crate::cli::client::run::CommandResult;
use crate::cli::client::run::Context;
use crate::cli::client::run::run_client;
use crate::cli::client::text::printable;
use crate::cli::client::text::table;
use crate::cli::output::Output;

/// `snapgate vm`.
#[derive(Args, Debug)]
pub(in crate::cli) struct VmArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// List the VMs that you may read
    List {
        /// Only VMs with this name; one * at the end stands for any ending
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
        limit: usize,
    },
    /// Show a VM and what you may do with it
    Show {
        /// Id or unique name of the VM
        #[arg(add = ArgValueCompleter::new(complete_vm))]
        vm: String,
    },
}

/// Runs `snapgate vm`.
pub(in crate::cli) fn run_vm(
    arguments: VmArguments,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let VmArguments {
        connection,
        command,
    } = arguments;
    run_client(&connection, output, move |context| {
        Box::pin(async move {
            match command {
                VmCommand::List { name, limit } => list(context, name.as_deref(), limit).await,
                VmCommand::Show { vm } => show(context, &vm).await,
            }
        })
    })
}

async fn list(context: &mut Context<'_, '_>, name: Option<&str>, limit: usize) -> CommandResult {
    let filter: Vec<(&str, &str)> = name.map(|name| ("name", name)).into_iter().collect();
    let found = context
        .gateway
        .list_vms(&filter, limit, &mut context.report);
    let found = found.await?;
    let mut rows = Vec::new();
    for vm in &found.vms {
        context
            .report
            .record(&json!({ "record": "vm", "vm": vm.json }));
        let last = vm.last_backup.as_ref().map(|last| last.created.clone());
        rows.push(vec![
            vm.id.clone(),
            vm.name.clone(),
            vm.state.clone().unwrap_or_else(|| "-".to_owned()),
            last.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    context
        .report
        .text(&table(&["ID", "NAME", "STATE", "LAST BACKUP"], &rows));
    if let Some(why) = &found.incomplete {
        context
            .report
            .record(&json!({ "record": "incomplete", "text": why }));
        let text = format!("snapgate: the list is incomplete: {}", printable(why));
        context.report.note(&text);
    }
    Ok(Ending::Done)
}

async fn show(context: &mut Context<'_, '_>, text: &str) -> CommandResult {
    let chosen = context.gateway.choose_vm(text, &mut context.report).await?;
    let Some(vm) = &chosen.vm else {
        // Chosen by its id alone, because it may not be read: the refusal says so.
        context.gateway.read_vm(text, &mut context.report).await?;
        return Ok(Ending::Done);
    };
    let permissions = context
        .gateway
        .read_permissions(Some(&chosen.id), None, &mut context.report);
    // Servers of the 2009 page have no permissions to show.
    let permissions = permissions.await.unwrap_or_default();
    let allowed: Vec<&str> = permissions
        .iter()
        .filter(|permission| permission.allowed)
        .map(|permission| permission.action.as_str())
        .collect();
    context
        .report
        .record(&json!({ "record": "vm", "id": chosen.id, "vm": vm.json, "allowed": allowed }));
    let mut text = format!("id          {}\n", printable(&chosen.id));
    let mut line = |head: &str, rest: &str| {
        if !rest.is_empty() {
            let _infallible = writeln!(text, "{head:<11} {}", printable(rest));
        }
    };
    line("name", &vm.name);
    line("state", vm.run_status.as_deref().unwrap_or_default());
    line("description", vm.description.as_deref().unwrap_or_default());
    line("you may", &allowed.join(", "));
    context.report.text(&text);
    Ok(Ending::Done)
}
