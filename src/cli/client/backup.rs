//! `snapgate backup`: backups of a VM, and what is done with them.

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use clap_complete::ArgValueCompleter;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::cli::CliError;
use crate::cli::client::completion::complete_backup;
use crate::cli::client::completion::complete_vm;
use crate::cli::client::confirm::Consent;
use crate::cli::client::confirm::Deed;
use crate::cli::client::confirm::can_ask;
use crate::cli::client::confirm::needs_yes;
use crate::cli::client::confirm::plan_text;
use crate::cli::client::connection::ConnectionArguments;
use crate::cli::client::ending::Ending;
use crate::cli::client::progress::Estimate;
use crate::cli::client::run::CommandResult;
use crate::cli::client::run::Context;
use crate::cli::client::run::WAIT_FOREVER;
use crate::cli::client::run::WaitFor;
use crate::cli::client::run::idempotency_key;
use crate::cli::client::run::parse_wait;
use crate::cli::client::run::run_client;
use crate::cli::client::text::printable;
use crate::cli::client::text::size;
use crate::cli::client::text::table;
use crate::cli::output::Output;
use crate::client::Backup;
use crate::client::ChangeRequest;
use crate::client::ClientError;

/// `snapgate backup`.
#[derive(Args, Debug)]
pub(in crate::cli) struct BackupArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// List the backups of a VM
    List(ListArguments),
    /// Show a backup
    Show(Target),
    /// Make a backup of a VM
    Create(CreateArguments),
    /// Change name, description, tags or protection of a backup
    Update(UpdateArguments),
    /// Delete a backup
    Delete(DeleteArguments),
    /// Restore a VM from a backup
    Restore(RestoreArguments),
    /// Show what a restore or a delete would do now; nothing is changed
    Plan(PlanArguments),
}

#[derive(Args, Debug)]
struct Target {
    /// Id or unique name of the VM
    #[arg(add = ArgValueCompleter::new(complete_vm))]
    vm: String,
    /// Id or unique name of the backup; @latest for the newest that can be used
    #[arg(add = ArgValueCompleter::new(complete_backup))]
    backup: String,
}

#[derive(Args, Debug)]
struct ListArguments {
    /// Id or unique name of the VM
    #[arg(add = ArgValueCompleter::new(complete_vm))]
    vm: String,
    /// Only backups with this name; one * at the end stands for any ending
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only backups with this tag; may be repeated
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Only backups in this state, for instance AVAILABLE
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only backups made at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only backups made before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// id, name, created or size; - before it for descending
    #[arg(
        long,
        value_name = "KEY",
        default_value = "created",
        allow_hyphen_values = true
    )]
    sort: String,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    limit: usize,
}

/// What every change has.
#[derive(Args, Debug)]
struct ChangeArguments {
    /// Wait for the end, at most for this duration if there is one
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = WAIT_FOREVER, value_parser = parse_wait)]
    wait: Option<WaitFor>,
    /// Key of an earlier try of the same command, which is then not done twice
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// What changes have that cannot be taken back.
#[derive(Args, Debug)]
struct ConsentArguments {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only if a plan made now has this fingerprint
    #[arg(long, value_name = "FINGERPRINT")]
    if_plan: Option<String>,
}

#[derive(Args, Debug)]
struct CreateArguments {
    /// Id or unique name of the VM
    #[arg(add = ArgValueCompleter::new(complete_vm))]
    vm: String,
    /// Name of the new backup
    name: String,
    /// What it is
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A tag; may be repeated
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// snapshot, full or incremental [default: the VM manager's own choice]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Protect it from being deleted
    #[arg(long)]
    protect: bool,
    #[command(flatten)]
    change: ChangeArguments,
}

#[derive(Args, Debug)]
#[group(skip)]
struct UpdateArguments {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    edit: EditArguments,
    #[command(flatten)]
    change: ChangeArguments,
}

/// What is changed of a backup; at least one.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct EditArguments {
    /// The new name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The new description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Clear the description
    #[arg(long, conflicts_with = "description")]
    no_description: bool,
    /// A tag; may be repeated. These replace all tags that it has
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Clear the tags
    #[arg(long, conflicts_with = "tag")]
    no_tags: bool,
    /// Protect it from being deleted
    #[arg(long)]
    protect: bool,
    /// Let it be deleted
    #[arg(long, conflicts_with = "protect")]
    unprotect: bool,
}

#[derive(Args, Debug)]
struct DeleteArguments {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    consent: ConsentArguments,
    #[command(flatten)]
    change: ChangeArguments,
}

#[derive(Args, Debug)]
struct RestoreArguments {
    #[command(flatten)]
    target: Target,
    /// Why it is done, for the audit trail
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// A pair for the VM manager, as the page of its adapter describes; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    option: Vec<(String, Value)>,
    #[command(flatten)]
    consent: ConsentArguments,
    #[command(flatten)]
    change: ChangeArguments,
}

#[derive(Args, Debug)]
struct PlanArguments {
    #[command(flatten)]
    target: Target,
    /// What is planned
    #[arg(long, value_enum, default_value = "restore")]
    op: PlannedDeed,
    /// A pair for the VM manager, as of a restore; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    option: Vec<(String, Value)>,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlannedDeed {
    /// A restore of the VM
    Restore,
    /// A delete of the backup
    Delete,
}

fn parse_pair(text: &str) -> Result<(String, Value), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| "expected NAME=VALUE".to_owned())?;
    Ok((name.to_owned(), Value::from(value)))
}

/// Runs `snapgate backup`.
pub(in crate::cli) fn run_backup(
    arguments: BackupArguments,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let BackupArguments {
        connection,
        command,
    } = arguments;
    run_client(&connection, output, move |context| {
        Box::pin(execute(command, context))
    })
}

async fn execute(command: BackupCommand, context: &mut Context<'_, '_>) -> CommandResult {
    match command {
        BackupCommand::List(arguments) => list(context, &arguments).await,
        BackupCommand::Show(target) => show(context, &target).await,
        BackupCommand::Create(arguments) => create(context, arguments).await,
        BackupCommand::Update(arguments) => update(context, arguments).await,
        BackupCommand::Delete(arguments) => delete(context, arguments).await,
        BackupCommand::Restore(arguments) => restore(context, arguments).await,
        BackupCommand::Plan(arguments) => plan(context, &arguments).await,
    }
}

async fn list(context: &mut Context<'_, '_>, arguments: &ListArguments) -> CommandResult {
    let vm = context
        .gateway
        .choose_vm(&arguments.vm, &mut context.report);
    let vm = vm.await?.id;
    let mut filter: Vec<(&str, &str)> = vec![("sort", &arguments.sort)];
    let named = [
        ("name", &arguments.name),
        ("state", &arguments.state),
        ("since", &arguments.since),
        ("before", &arguments.before),
    ];
    let given = named.iter();
    filter.extend(given.filter_map(|(name, value)| Some((*name, value.as_deref()?))));
    filter.extend(arguments.tag.iter().map(|tag| ("tag", tag.as_str())));
    let found = context
        .gateway
        .list_backups(&vm, &filter, arguments.limit, &mut context.report);
    let found = found.await?;
    let mut rows = Vec::new();
    for backup in &found {
        context.report.record(&backup_record(backup));
        rows.push(vec![
            backup.id.clone(),
            backup.name.clone(),
            backup.created.clone().unwrap_or_default(),
            backup.kind.clone().unwrap_or_default(),
            backup.size.map(size).unwrap_or_default(),
            backup.state.clone().unwrap_or_default(),
            if backup.protected { "yes" } else { "no" }.to_owned(),
            backup.tags.join(","),
        ]);
    }
    let heads = [
        "ID",
        "NAME",
        "CREATED",
        "TYPE",
        "SIZE",
        "STATE",
        "PROTECTED",
        "TAGS",
    ];
    context.report.text(&table(&heads, &rows));
    Ok(Ending::Done)
}

fn backup_record(backup: &Backup) -> Value {
    json!({ "record": "backup", "id": backup.id, "backup": backup.json })
}

async fn show(context: &mut Context<'_, '_>, target: &Target) -> CommandResult {
    let (_vm, backup) = choose(context, target).await?;
    context.report.record(&backup_record(&backup));
    let mut rows = vec![("id", backup.id.clone()), ("name", backup.name.clone())];
    let text = |name: &str| {
        let text = backup.json.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    rows.extend(["created", "type", "state", "description"].map(|name| (name, text(name))));
    rows.push(("size", backup.size.map(size).unwrap_or_default()));
    rows.push(("tags", backup.tags.join(", ")));
    let protected = if backup.protected { "yes" } else { "no" };
    rows.push(("protected", protected.to_owned()));
    let lines = rows.iter().filter(|(_, value)| !value.is_empty());
    let lines = lines.map(|(name, value)| format!("{name:<11} {}\n", printable(value)));
    let text: String = lines.collect();
    context.report.text(&text);
    Ok(Ending::Done)
}

/// The ids of the VM and the backup that are meant.
async fn choose(
    context: &mut Context<'_, '_>,
    target: &Target,
) -> Result<(crate::client::ChosenVm, Backup), ClientError> {
    let vm = context.gateway.choose_vm(&target.vm, &mut context.report);
    let vm = vm.await?;
    let backup = context
        .gateway
        .choose_backup(&vm.id, &target.backup, &mut context.report);
    let backup = backup.await?;
    Ok((vm, backup))
}

async fn create(context: &mut Context<'_, '_>, arguments: CreateArguments) -> CommandResult {
    let vm = context
        .gateway
        .choose_vm(&arguments.vm, &mut context.report);
    let vm = vm.await?.id;
    let mut body = Map::new();
    body.insert("name".to_owned(), Value::from(arguments.name));
    if let Some(description) = arguments.description {
        body.insert("description".to_owned(), Value::from(description));
    }
    if !arguments.tag.is_empty() {
        body.insert("tags".to_owned(), Value::from(arguments.tag));
    }
    if let Some(kind) = arguments.kind {
        body.insert("type".to_owned(), Value::from(kind));
    }
    if arguments.protect {
        body.insert("protected".to_owned(), Value::Bool(true));
    }
    let key = idempotency_key(arguments.change.idempotency_key.as_deref())?;
    let change = ChangeRequest::create(&vm, &Value::Object(body), &key)?;
    let done = context.carry_out(change, &key, arguments.change.wait).await;
    explained(context, done, &["create", "protect"], &vm, None).await
}

async fn update(context: &mut Context<'_, '_>, arguments: UpdateArguments) -> CommandResult {
    let (vm, backup) = choose(context, &arguments.target).await?;
    let edit = arguments.edit;
    let mut body = Map::new();
    if let Some(name) = edit.name {
        body.insert("name".to_owned(), Value::from(name));
    }
    if edit.no_description || edit.description.is_some() {
        body.insert("description".to_owned(), Value::from(edit.description));
    }
    if edit.no_tags {
        body.insert("tags".to_owned(), Value::Null);
    } else if !edit.tag.is_empty() {
        body.insert("tags".to_owned(), Value::from(edit.tag));
    }
    if edit.protect || edit.unprotect {
        body.insert("protected".to_owned(), Value::Bool(edit.protect));
    }
    let key = idempotency_key(arguments.change.idempotency_key.as_deref())?;
    let target = (vm.id.as_str(), backup.id.as_str());
    let change = ChangeRequest::update(target, &Value::Object(body), &key)?;
    let done = context.carry_out(change, &key, arguments.change.wait).await;
    let actions = ["update", "protect"];
    explained(context, done, &actions, &vm.id, Some(&backup.id)).await
}

async fn delete(context: &mut Context<'_, '_>, arguments: DeleteArguments) -> CommandResult {
    let deed = Deed::Delete;
    carry_out_deed(
        context,
        deed,
        &arguments.target,
        (arguments.consent, arguments.change),
        None,
    )
    .await
}

async fn restore(context: &mut Context<'_, '_>, arguments: RestoreArguments) -> CommandResult {
    let mut pairs = arguments.option;
    pairs.extend(
        arguments
            .note
            .map(|note| ("note".to_owned(), Value::from(note))),
    );
    carry_out_deed(
        context,
        Deed::Restore,
        &arguments.target,
        (arguments.consent, arguments.change),
        Some(pairs),
    )
    .await
}

/// What cannot be taken back: asks first, unless that was answered beforehand.
async fn carry_out_deed(
    context: &mut Context<'_, '_>,
    deed: Deed,
    target: &Target,
    (consent, change): (ConsentArguments, ChangeArguments),
    pairs: Option<Vec<(String, Value)>>,
) -> CommandResult {
    // Before anything is asked of the gateway: a script learns it at once.
    if !consent.yes && !can_ask() {
        return Err(needs_yes(deed));
    }
    let (vm, backup) = choose(context, target).await?;
    let mut fingerprint = consent.if_plan;
    if !consent.yes {
        let planned = pairs.as_deref().unwrap_or_default();
        let asked = context.confirm(deed, &vm, &backup, planned).await;
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => {
                let refused = Err(error);
                let actions = [deed.action()];
                return explained(context, refused, &actions, &vm.id, Some(&backup.id)).await;
            }
        };
        match asked {
            // The plan that was named beforehand counts, if one was.
            Consent::Yes { fingerprint: shown } => fingerprint = fingerprint.or(shown),
            Consent::No(ending) => return Ok(ending),
        }
    }
    let key = idempotency_key(change.idempotency_key.as_deref())?;
    let ids = (vm.id.as_str(), backup.id.as_str());
    let mut request = match pairs {
        Some(pairs) => {
            let body: Map<String, Value> = pairs.into_iter().collect();
            ChangeRequest::restore(ids, &Value::Object(body), &key)?
        }
        None => ChangeRequest::delete(ids, &key)?,
    };
    if let Some(fingerprint) = fingerprint {
        request = request.only_as_planned(&fingerprint)?;
    }
    let done = context.carry_out(request, &key, change.wait).await;
    explained(context, done, &[deed.action()], &vm.id, Some(&backup.id)).await
}

/// The same, where a right is missing with what to ask for.
async fn explained(
    context: &mut Context<'_, '_>,
    done: CommandResult,
    actions: &[&str],
    vm: &str,
    backup: Option<&str>,
) -> CommandResult {
    match done {
        Ok(ending) => Ok(ending),
        Err(error) => Err(context.explain_refusal(error, actions, vm, backup).await),
    }
}

async fn plan(context: &mut Context<'_, '_>, arguments: &PlanArguments) -> CommandResult {
    let deed = match arguments.op {
        PlannedDeed::Restore => Deed::Restore,
        PlannedDeed::Delete => Deed::Delete,
    };
    let (vm, backup) = choose(context, &arguments.target).await?;
    let ids = (vm.id.as_str(), backup.id.as_str());
    let found = context
        .gateway
        .read_plan(ids, deed.op(), &arguments.option, &mut context.report)
        .await;
    let plan = match found {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            let text = "this server makes no plans";
            return Err(ClientError::Usage(text.to_owned()));
        }
        Err(error) => {
            let actions = [deed.action()];
            let explained = context.explain_refusal(error, &actions, &vm.id, Some(&backup.id));
            return Err(explained.await);
        }
    };
    context.report.estimate = Estimate::of_plan(&plan);
    context
        .report
        .record(&json!({ "record": "plan", "plan": plan.json }));
    let text = format!(
        "{} of VM {} (id {}), backup {} (id {}), made {}\n{}  fingerprint  {}\n",
        deed.op(),
        printable(&plan.vm.name),
        printable(&plan.vm.id),
        printable(&plan.backup.name),
        printable(&plan.backup.id),
        printable(&plan.backup.created),
        plan_text(&plan),
        printable(&plan.fingerprint)
    );
    context.report.text(&text);
    Ok(match plan.refused.first() {
        Some(refused) => Ending::Declined(format!("it would be refused: {}", refused.text)),
        None => Ending::Done,
    })
}
