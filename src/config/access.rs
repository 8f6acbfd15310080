//! Users, groups and grants.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;

use crate::config::htpasswd;
use crate::config::issuers;
use crate::config::issuers::KeySource;
use crate::config::tables;
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
use crate::model::suggest;
use crate::schema::LocatedText;
use crate::schema::Problem;
use crate::schema::Reader;
use crate::schema::SecretSource;
use crate::schema::Section;

/// Everybody known so far.
struct People<'a> {
    reader: &'a Reader<'a>,
    /// With the hash and the groups; no hash after a problem, so that grants to the user are not reported as well.
    users: BTreeMap<PrincipalName, (Option<PasswordHash>, BTreeSet<GroupName>)>,
    issuers: Vec<Issuer>,
    /// Where the keys of some of them are fetched from.
    key_sources: Vec<KeySource>,
    /// Of invalid ones too.
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
    source: &SecretSource<'_>,
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
    for section in Section::read_all(reader, root, &tables::user::TABLE) {
        people.add_user(&section, source);
    }
    let mut remember = limits::CREDENTIALS_REMEMBERED;
    let (mut tokens, mut tokens_file) = (None, None);
    for section in Section::read_all(reader, root, &tables::authentication::TABLE) {
        remember = section.read_duration(&tables::authentication::REMEMBER);
        if let Some(path) = section.read_text(&tables::authentication::HTPASSWD) {
            people.add_file(&path, source);
        }
        if let Some(path) = section.read_text(&tables::authentication::TOKENS) {
            let file = reader.folder().join(&path.text);
            source.mark_secret_file(&file, "the hashes and rights of API tokens");
            tokens = Some(tokens_of(reader, &path, &file, source));
            tokens_file = Some(file);
        }
    }
    let mut holders = BTreeMap::new();
    for section in Section::read_all(reader, root, &tables::client_certificate::TABLE) {
        people.add_certificate(&section, &mut holders);
    }
    let mut named = BTreeSet::new();
    for section in Section::read_all(reader, root, &tables::group::TABLE) {
        people.add_group(&section, &mut named);
    }
    for section in Section::read_all(reader, root, &tables::issuer::TABLE) {
        people.add_issuer(&section, source);
    }
    let grants = people.grants(&Section::read_all(reader, root, &tables::grant::TABLE));
    let allowed = passes.iter().map(|section| {
        let all = section.read_texts(&tables::passthrough::ALLOW);
        all.iter().filter_map(|text| people.grantee(text)).collect()
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
    found: &LocatedText,
    file: &Path,
    source: &SecretSource<'_>,
) -> Vec<ApiToken> {
    match source.read_if_exists(file) {
        Ok(text) => {
            let (tokens, problems) = tokens::read(file, &text.unwrap_or_default());
            for problem in problems {
                reader.report_in_other_file(problem);
            }
            tokens
        }
        Err(what) => {
            reader.report_text(found, what, "");
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
                let what = format!("more than {} grants", limits::PRINCIPALS_MAX);
                section.report(what, "");
                break;
            }
        }
        grants
    }

    fn add_user(&mut self, section: &Section<'_>, source: &SecretSource<'_>) {
        let name = section.read_text(&tables::user::NAME);
        let hash = section.read_text(&tables::user::PASSWORD_HASH);
        let password = hash.and_then(|hash| self.password(&hash, source));
        let mut groups = BTreeSet::new();
        for item in section.read_texts(&tables::user::GROUPS) {
            groups.extend(self.checked(&item, GroupName::new));
        }
        self.groups.extend(groups.iter().cloned());
        if let Some(found) = name.as_ref().filter(|name| name.text.contains(':')) {
            let what = "must not contain ':', which is reserved for callers of an issuer";
            return self.reader.report_text(found, what, "");
        }
        let Some(name) = name.and_then(|name| self.checked(&name, PrincipalName::new)) else {
            return;
        };
        if self.users.len() >= limits::PRINCIPALS_MAX {
            section.report(format!("more than {} users", limits::PRINCIPALS_MAX), "");
            return;
        }
        match self.users.entry(name) {
            Entry::Occupied(entry) => {
                let what = format!("duplicate user \"{}\"", entry.key());
                section.report_key(tables::user::NAME.name, what, "remove one");
            }
            Entry::Vacant(entry) => {
                entry.insert((password, groups));
            }
        }
    }

    fn add_certificate(
        &mut self,
        section: &Section<'_>,
        holders: &mut BTreeMap<CertificateName, PrincipalName>,
    ) {
        let user = section.read_text(&tables::client_certificate::USER);
        let user = user.and_then(|user| self.checked(&user, PrincipalName::new));
        let mut groups = BTreeSet::new();
        for item in section.read_texts(&tables::client_certificate::GROUPS) {
            groups.extend(self.checked(&item, GroupName::new));
        }
        self.groups.extend(groups.iter().cloned());
        if let Some(user) = &user {
            let (_, its) = self.users.entry(user.clone()).or_default();
            its.extend(groups);
        }
        for found in section.read_texts(&tables::client_certificate::NAMES) {
            let hint = "write a name such as \"dns:ci.example.com\"";
            let name = match CertificateName::new(&found.text) {
                Ok(name) => name,
                Err(what) => {
                    self.reader
                        .report_text(&found, format!("{:?} {what}", found.text), hint);
                    continue;
                }
            };
            let Some(user) = &user else { continue };
            if holders.insert(name, user.clone()).is_some() {
                let what = format!("duplicate name {:?}", found.text);
                self.reader
                    .report_text(&found, what, "each name identifies one caller");
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

    fn password(&self, found: &LocatedText, source: &SecretSource<'_>) -> Option<PasswordHash> {
        if !found.text.starts_with("file:") && !found.text.starts_with("env:") {
            source.mark_secret_file(self.reader.file(), "hashes of passwords");
        }
        let text = source
            .resolve(&found.text, &self.reader.folder())
            .map_err(|error| self.reader.report_text(found, error, ""))
            .ok()?;
        let hint = "create one with: snapgate hash-password";
        PasswordHash::new(text)
            .map_err(|error| self.reader.report_text(found, error, hint))
            .ok()
    }

    fn checked<T>(&self, found: &LocatedText, make: fn(&str) -> Result<T, TextError>) -> Option<T> {
        make(&found.text)
            .map_err(|error| self.reader.report_text(found, error.to_string(), ""))
            .ok()
    }

    fn add_file(&mut self, path: &LocatedText, source: &SecretSource<'_>) {
        let file = self.reader.folder().join(&path.text);
        source.mark_secret_file(&file, "hashes of passwords");
        let text = match source.read(&file) {
            Ok(text) => text,
            Err(what) => return self.reader.report_text(path, what, ""),
        };
        let (entries, problems) = htpasswd::read(&file, &text);
        for problem in problems {
            self.reader.report_in_other_file(problem);
        }
        for entry in entries {
            let fault = if self.users.contains_key(&entry.name) {
                format!("duplicate user \"{}\"", entry.name)
            } else if self.users.len() >= limits::PRINCIPALS_MAX {
                format!("more than {} users", limits::PRINCIPALS_MAX)
            } else {
                let user = (Some(entry.password), BTreeSet::new());
                self.users.insert(entry.name, user);
                continue;
            };
            self.reader.report_in_other_file(Problem {
                file: file.clone(),
                position: Some((entry.line, 1)),
                key: String::new(),
                what: fault,
                hint: Some("remove it here or in [[user]]".to_owned()),
            });
        }
    }

    fn add_group(&mut self, section: &Section<'_>, named: &mut BTreeSet<GroupName>) {
        let members = section.read_texts(&tables::group::MEMBERS);
        let name = section.read_text(&tables::group::NAME);
        let Some(name) = name.and_then(|name| self.checked(&name, GroupName::new)) else {
            return;
        };
        if !named.insert(name.clone()) {
            let what = format!("duplicate group \"{name}\"");
            section.report_key(
                tables::group::NAME.name,
                what,
                "write all members in one [[group]]",
            );
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

    fn add_issuer(&mut self, section: &Section<'_>, source: &SecretSource<'_>) {
        use tables::issuer as key;
        let found = issuers::read(self.reader, section, source);
        if let Some(name) = &found.name
            && !self.issuer_names.insert(name.clone())
        {
            let what = format!("duplicate issuer \"{name}\"");
            section.report_key(key::NAME.name, what, "choose another name");
        }
        self.groups.extend(found.groups.into_values());
        let Some((issuer, keys)) = found.issuer else {
            return;
        };
        if self
            .issuers
            .iter()
            .any(|other| other.issuer == issuer.issuer)
        {
            let what = "is also the issuer of another [[issuer]]";
            section.report_key(key::ISSUER.name, what, "keep one");
        }
        if self.issuers.len() >= limits::ISSUERS_MAX {
            section.report(format!("more than {} issuers", limits::ISSUERS_MAX), "");
            return;
        }
        self.issuers.push(issuer);
        self.key_sources.extend(keys);
    }

    /// Whether it is a name that an issuer can give.
    fn is_of_issuer(&self, name: &PrincipalName) -> bool {
        let issuer = name.as_str().split_once(':').map(|parts| parts.0);
        issuer.is_some_and(|issuer| self.issuer_names.iter().any(|name| name.as_str() == issuer))
    }

    fn unknown_user(&self, found: &LocatedText, name: &str) {
        let known = self.users.keys().map(PrincipalName::as_str);
        self.unknown(found, "user", suggest::nearest(name, known));
    }

    fn unknown(&self, found: &LocatedText, what: &str, near: Option<&str>) {
        let hint = near.map_or_else(
            || format!("add a [[{what}]] of that name"),
            |near| format!("did you mean \"{near}\"?"),
        );
        let what = format!("unknown {what} {:?}", found.text);
        self.reader.report_text(found, what, &hint);
    }

    fn grant(&self, section: &Section<'_>) -> Grant {
        let to = section.read_texts(&tables::grant::TO);
        let actions = section.read_texts(&tables::grant::ACTIONS);
        let vms = section.read_texts(&tables::grant::VMS);
        let backups = section.read_texts(&tables::grant::BACKUPS);
        let patterns = |all: Vec<LocatedText>| -> Vec<Pattern> {
            all.iter()
                .filter_map(|text| self.checked(text, Pattern::new))
                .collect()
        };
        Grant {
            to: to.iter().filter_map(|text| self.grantee(text)).collect(),
            actions: actions
                .iter()
                .filter_map(|action| self.action(action))
                .collect::<ActionSet>(),
            vms: patterns(vms),
            backups: patterns(backups),
            line: section.line(),
        }
    }

    fn grantee(&self, found: &LocatedText) -> Option<Grantee> {
        if let Some(name) = found.text.strip_prefix("user:") {
            let known = PrincipalName::new(name).ok();
            let known =
                known.filter(|user| self.users.contains_key(user) || self.is_of_issuer(user));
            if known.is_none() {
                self.unknown_user(found, name);
            }
            return known.map(Grantee::User);
        }
        if let Some(name) = found.text.strip_prefix("group:") {
            let known = GroupName::new(name).ok();
            let known = known.filter(|group| self.groups.contains(group));
            if known.is_none() {
                let near = suggest::nearest(name, self.groups.iter().map(GroupName::as_str));
                self.unknown(found, "group", near);
            }
            return known.map(Grantee::Group);
        }
        let what = format!("{:?} is neither a user nor a group", found.text);
        self.reader
            .report_text(found, what, "write \"user:NAME\" or \"group:NAME\"");
        None
    }

    fn action(&self, found: &LocatedText) -> Option<Action> {
        let action = Action::ALL
            .into_iter()
            .find(|action| action.as_str() == found.text);
        if action.is_none() {
            let known: Vec<&str> = Action::ALL.into_iter().map(Action::as_str).collect();
            let hint = format!("expected one of {}", known.join(", "));
            let what = format!("unknown action {:?}", found.text);
            self.reader.report_text(found, what, &hint);
        }
        action
    }
}
