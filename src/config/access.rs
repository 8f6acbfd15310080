//! Users, groups and grants.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;

use crate::config::htpasswd;
use crate::config::issuers;
use crate::config::problem::Problem;
use crate::config::reader::Found;
use crate::config::reader::Reader;
use crate::config::reader::Section;
use crate::config::schema;
use crate::config::secret_source::Source;
use crate::config::settings::KeySource;
use crate::config::suggest;
use crate::config::tokens;
use crate::gate::ApiToken;
use crate::gate::CredentialRule;
use crate::gate::Grant;
use crate::gate::Grantee;
use crate::gate::Issuer;
use crate::gate::PasswordHash;
use crate::gate::User;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::CertificateName;
use crate::model::GroupName;
use crate::model::IssuerName;
use crate::model::Pattern;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::TextError;
use crate::model::limits;

/// Everybody known so far.
struct People<'a> {
    reader: &'a Reader<'a>,
    /// With the hash and the groups; no hash after a mistake, so that grants to the user are not mistakes as well.
    users: BTreeMap<PrincipalName, (Option<PasswordHash>, BTreeSet<GroupName>)>,
    issuers: Vec<Issuer>,
    /// Where the keys of some of them are fetched from.
    key_sources: Vec<KeySource>,
    /// Of those with a mistake too.
    issuer_names: BTreeSet<IssuerName>,
    groups: BTreeSet<GroupName>,
}

/// What is known of callers.
pub(super) struct Access {
    pub(super) credentials: CredentialRule,
    pub(super) grants: Vec<Grant>,
    /// Where the keys of issuers are fetched from.
    pub(super) key_sources: Vec<KeySource>,
    /// The file of tokens, which may not exist yet.
    pub(super) tokens_file: Option<PathBuf>,
    /// Who may use each `[[passthrough]]`.
    pub(super) allowed: Vec<Vec<Grantee>>,
}

/// Reads `[authentication]`, `[[user]]`, `[[group]]` and `[[grant]]`, and who may use each `[[passthrough]]`.
pub(super) fn read(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    source: &Source<'_>,
    passes: &[Section<'_>],
) -> Access {
    let mut people = People {
        reader,
        users: BTreeMap::new(),
        issuers: Vec::new(),
        key_sources: Vec::new(),
        issuer_names: BTreeSet::new(),
        groups: BTreeSet::new(),
    };
    for section in reader.sections(root, &schema::user::TABLE) {
        people.add_user(&section, source);
    }
    let mut remember = limits::CREDENTIALS_REMEMBERED;
    let (mut tokens, mut tokens_file) = (None, None);
    for section in reader.sections(root, &schema::authentication::TABLE) {
        remember = section.span(&schema::authentication::REMEMBER);
        if let Some(path) = section.text(&schema::authentication::HTPASSWD) {
            people.add_file(&path, source);
        }
        if let Some(path) = section.text(&schema::authentication::TOKENS) {
            let file = reader.folder().join(&path.text);
            source.holds_secret(&file, "the hashes and rights of API tokens");
            tokens = Some(tokens_of(reader, &path, &file, source));
            tokens_file = Some(file);
        }
    }
    let mut holders = BTreeMap::new();
    for section in reader.sections(root, &schema::client_certificate::TABLE) {
        people.add_certificate(&section, &mut holders);
    }
    let mut named = BTreeSet::new();
    for section in reader.sections(root, &schema::group::TABLE) {
        people.add_group(&section, &mut named);
    }
    for section in reader.sections(root, &schema::issuer::TABLE) {
        people.add_issuer(&section, source);
    }
    let grants = people.grants(&reader.sections(root, &schema::grant::TABLE));
    let allowed = passes.iter().map(|section| {
        let all = section.texts(&schema::passthrough::ALLOW);
        all.iter().filter_map(|it| people.grantee(it)).collect()
    });
    let allowed = allowed.collect();
    let certificates = people.holders(holders);
    let users = people
        .users
        .into_iter()
        .filter_map(|(name, (hash, groups))| {
            let groups = groups.into_iter().collect();
            hash.map(|password| (name, User { password, groups }))
        });
    let users = users.collect();
    let credentials = CredentialRule {
        users,
        certificates,
        tokens,
        issuers: people.issuers,
        remember,
    };
    Access {
        credentials,
        grants,
        key_sources: people.key_sources,
        tokens_file,
        allowed,
    }
}

fn tokens_of(
    reader: &Reader<'_>,
    found: &Found,
    file: &Path,
    source: &Source<'_>,
) -> Vec<ApiToken> {
    match source.read_if_there(file) {
        Ok(text) => {
            let (tokens, problems) = tokens::read(file, &text.unwrap_or_default());
            for it in problems {
                reader.elsewhere(it);
            }
            tokens
        }
        Err(what) => {
            reader.wrong(found, format!("{} {what}", file.display()), "");
            Vec::new()
        }
    }
}

impl People<'_> {
    fn grants(&self, sections: &[Section<'_>]) -> Vec<Grant> {
        let mut grants = Vec::new();
        for section in sections {
            grants.push(self.grant(section));
            if grants.len() > limits::PRINCIPALS_MAX {
                let what = format!("is more than {} grants", limits::PRINCIPALS_MAX);
                section.problem(what, "");
                break;
            }
        }
        grants
    }

    fn add_user(&mut self, section: &Section<'_>, source: &Source<'_>) {
        let name = section.text(&schema::user::NAME);
        let hash = section.text(&schema::user::PASSWORD_HASH);
        let password = hash.and_then(|hash| self.password(&hash, source));
        let mut groups = BTreeSet::new();
        for item in section.texts(&schema::user::GROUPS) {
            groups.extend(self.checked(&item, GroupName::new));
        }
        self.groups.extend(groups.iter().cloned());
        if let Some(found) = name.as_ref().filter(|name| name.text.contains(':')) {
            let what = "must not contain ':', which is for callers of an issuer";
            return self.reader.wrong(found, what, "");
        }
        let Some(name) = name.and_then(|name| self.checked(&name, PrincipalName::new)) else {
            return;
        };
        if self.users.len() >= limits::PRINCIPALS_MAX {
            section.problem(format!("is more than {} users", limits::PRINCIPALS_MAX), "");
            return;
        }
        match self.users.entry(name) {
            Entry::Occupied(it) => {
                let what = format!("the user {} is there twice", it.key());
                section.problem_at(schema::user::NAME.name, what, "remove one");
            }
            Entry::Vacant(it) => {
                it.insert((password, groups));
            }
        }
    }

    fn add_certificate(
        &mut self,
        section: &Section<'_>,
        holders: &mut BTreeMap<CertificateName, PrincipalName>,
    ) {
        let user = section.text(&schema::client_certificate::USER);
        let user = user.and_then(|user| self.checked(&user, PrincipalName::new));
        let mut groups = BTreeSet::new();
        for item in section.texts(&schema::client_certificate::GROUPS) {
            groups.extend(self.checked(&item, GroupName::new));
        }
        self.groups.extend(groups.iter().cloned());
        if let Some(user) = &user {
            let (_, its) = self.users.entry(user.clone()).or_default();
            its.extend(groups);
        }
        for found in section.texts(&schema::client_certificate::NAMES) {
            let hint = "write for instance \"dns:ci.example.com\"";
            let name = match CertificateName::new(&found.text) {
                Ok(name) => name,
                Err(what) => {
                    self.reader
                        .wrong(&found, format!("{:?} {what}", found.text), hint);
                    continue;
                }
            };
            let Some(user) = &user else { continue };
            if holders.insert(name, user.clone()).is_some() {
                let what = format!("{:?} is there twice", found.text);
                self.reader
                    .wrong(&found, what, "a name stands for one caller");
            }
        }
    }

    /// The callers by the names in their certificates, with all their groups.
    fn holders(
        &self,
        holders: BTreeMap<CertificateName, PrincipalName>,
    ) -> BTreeMap<CertificateName, Principal> {
        let principal = |name: PrincipalName| {
            let groups = self
                .users
                .get(&name)
                .map(|user| user.1.iter().cloned().collect());
            Principal {
                groups: groups.unwrap_or_default(),
                name,
            }
        };
        let all = holders.into_iter();
        all.map(|(name, user)| (name, principal(user))).collect()
    }

    fn password(&self, found: &Found, source: &Source<'_>) -> Option<PasswordHash> {
        if !found.text.starts_with("file:") && !found.text.starts_with("env:") {
            source.holds_secret(self.reader.file(), "hashes of passwords");
        }
        let text = source
            .secret(&found.text, &self.reader.folder())
            .map_err(|error| self.reader.wrong(found, error, ""))
            .ok()?;
        let hint = "make one with: snapgate hash-password";
        PasswordHash::new(text)
            .map_err(|error| self.reader.wrong(found, error, hint))
            .ok()
    }

    fn checked<T>(&self, found: &Found, make: fn(&str) -> Result<T, TextError>) -> Option<T> {
        make(&found.text)
            .map_err(|error| self.reader.wrong(found, error.to_string(), ""))
            .ok()
    }

    fn add_file(&mut self, path: &Found, source: &Source<'_>) {
        let file = self.reader.folder().join(&path.text);
        source.holds_secret(&file, "hashes of passwords");
        let text = match source.read(&file) {
            Ok(text) => text,
            Err(what) => {
                let what = format!("{} {what}", file.display());
                return self.reader.wrong(path, what, "");
            }
        };
        let (entries, problems) = htpasswd::read(&file, &text);
        for it in problems {
            self.reader.elsewhere(it);
        }
        for entry in entries {
            let fault = if self.users.contains_key(&entry.name) {
                format!("the user {} is there twice", entry.name)
            } else if self.users.len() >= limits::PRINCIPALS_MAX {
                format!("is more than {} users", limits::PRINCIPALS_MAX)
            } else {
                let user = (Some(entry.password), BTreeSet::new());
                self.users.insert(entry.name, user);
                continue;
            };
            self.reader.elsewhere(Problem {
                file: file.clone(),
                place: Some((entry.line, 1)),
                key: String::new(),
                what: fault,
                hint: Some("users of this file and of [[user]] count together".to_owned()),
            });
        }
    }

    fn add_group(&mut self, section: &Section<'_>, named: &mut BTreeSet<GroupName>) {
        let members = section.texts(&schema::group::MEMBERS);
        let name = section.text(&schema::group::NAME);
        let Some(name) = name.and_then(|name| self.checked(&name, GroupName::new)) else {
            return;
        };
        if !named.insert(name.clone()) {
            let what = format!("the group {name} is there twice");
            section.problem_at(schema::group::NAME.name, what, "write all members into one");
        }
        self.groups.insert(name.clone());
        for item in members {
            let user = PrincipalName::new(&item.text).ok();
            if let Some((_, groups)) = user.and_then(|user| self.users.get_mut(&user)) {
                groups.insert(name.clone());
            } else {
                self.unknown_user(&item, &item.text);
            }
        }
    }

    fn add_issuer(&mut self, section: &Section<'_>, source: &Source<'_>) {
        use schema::issuer as key;
        let found = issuers::read(self.reader, section, source);
        if let Some(name) = &found.name
            && !self.issuer_names.insert(name.clone())
        {
            let what = format!("the issuer {name} is there twice");
            section.problem_at(key::NAME.name, what, "choose another name");
        }
        self.groups.extend(found.groups.into_values());
        let Some((issuer, keys)) = found.issuer else {
            return;
        };
        if self.issuers.iter().any(|it| it.issuer == issuer.issuer) {
            let what = "is that of another [[issuer]]: a token would not say which is meant";
            section.problem_at(key::ISSUER.name, what, "keep one");
        }
        if self.issuers.len() >= limits::ISSUERS_MAX {
            section.problem(format!("is more than {} issuers", limits::ISSUERS_MAX), "");
            return;
        }
        self.issuers.push(issuer);
        self.key_sources.extend(keys);
    }

    /// Whether it is a name that an issuer can give.
    fn is_of_issuer(&self, name: &PrincipalName) -> bool {
        let issuer = name.as_str().split_once(':').map(|it| it.0);
        issuer.is_some_and(|issuer| self.issuer_names.iter().any(|name| name.as_str() == issuer))
    }

    fn unknown_user(&self, found: &Found, name: &str) {
        let known = self.users.keys().map(PrincipalName::as_str);
        self.unknown(found, "user", suggest::nearest(name, known));
    }

    fn unknown(&self, found: &Found, what: &str, near: Option<&str>) {
        let hint = near.map_or_else(
            || format!("add a [[{what}]] of that name"),
            |it| format!("did you mean \"{it}\"?"),
        );
        let what = format!("{:?} is no known {what}", found.text);
        self.reader.wrong(found, what, &hint);
    }

    fn grant(&self, section: &Section<'_>) -> Grant {
        let to = section.texts(&schema::grant::TO);
        let actions = section.texts(&schema::grant::ACTIONS);
        let vms = section.texts(&schema::grant::VMS);
        let backups = section.texts(&schema::grant::BACKUPS);
        let patterns = |all: Vec<Found>| -> Vec<Pattern> {
            all.iter()
                .filter_map(|it| self.checked(it, Pattern::new))
                .collect()
        };
        Grant {
            to: to.iter().filter_map(|it| self.grantee(it)).collect(),
            actions: actions
                .iter()
                .filter_map(|action| self.action(action))
                .collect::<ActionSet>(),
            vms: patterns(vms),
            backups: patterns(backups),
            line: section.line(),
        }
    }

    fn grantee(&self, found: &Found) -> Option<Grantee> {
        if let Some(name) = found.text.strip_prefix("user:") {
            let known = PrincipalName::new(name).ok();
            let known = known.filter(|it| self.users.contains_key(it) || self.is_of_issuer(it));
            if known.is_none() {
                self.unknown_user(found, name);
            }
            return known.map(Grantee::User);
        }
        if let Some(name) = found.text.strip_prefix("group:") {
            let known = GroupName::new(name).ok();
            let known = known.filter(|it| self.groups.contains(it));
            if known.is_none() {
                let near = suggest::nearest(name, self.groups.iter().map(GroupName::as_str));
                self.unknown(found, "group", near);
            }
            return known.map(Grantee::Group);
        }
        let what = format!("{:?} is neither a user nor a group", found.text);
        self.reader
            .wrong(found, what, "write \"user:NAME\" or \"group:NAME\"");
        None
    }

    fn action(&self, found: &Found) -> Option<Action> {
        let action = Action::ALL.into_iter().find(|it| it.as_str() == found.text);
        if action.is_none() {
            let known: Vec<&str> = Action::ALL.into_iter().map(Action::as_str).collect();
            let hint = format!("known actions are {}", known.join(", "));
            let what = format!("{:?} is no known action", found.text);
            self.reader.wrong(found, what, &hint);
        }
        action
    }
}
