//! The file of profiles, `client.toml`: where gateways are, and how the caller proves to be who it is. Only its owner may read it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::model::Secret;

/// The profile that is used where none is named and the file names none.
pub const DEFAULT_PROFILE: &str = "default";
/// Largest file of profiles or secrets in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What the group and others may do with a file.
const NOT_OWNER: u32 = 0o077;
/// What others may do with a file; a group may be that of a service that needs the secret.
const OTHERS: u32 = 0o007;

/// Why a file of profiles or secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error("cannot read {}: {}", .0.display(), reason_of(.1))]
    Read(PathBuf, io::Error),
    /// It cannot be written.
    #[error("cannot write {}: {}", .0.display(), reason_of(.1))]
    Write(PathBuf, io::Error),
    /// Others may read or change it.
    #[error("{} holds credentials and other users may read or change it; run: chmod {mode} {}", file.display(), file.display())]
    Exposed {
        /// The file.
        file: PathBuf,
        /// The mode that it should have, for `chmod`.
        mode: &'static str,
    },
    /// Its content is none.
    #[error("{}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such profile.
    #[error("there is no profile {name:?} in {}; it has {known}. Make it with: snapgate login --profile {name}", file.display())]
    Unknown {
        /// The name.
        name: String,
        /// The file.
        file: PathBuf,
        /// Those that it has.
        known: String,
    },
}

fn invalid(path: &Path, problem: &str) -> ProfileError {
    ProfileError::Content {
        file: path.to_owned(),
        problem: problem.to_owned(),
    }
}

fn reason_of(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        "no such file".to_owned()
    } else {
        error.to_string()
    }
}

/// One gateway and one caller.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The URL of the gateway.
    pub url: String,
    /// The user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The file that has the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The token itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The file that has the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The authorities that sign the gateway's certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The client certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither password nor token.
        f.debug_struct("Profile")
            .field("url", &self.url)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// The whole file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// The profile that is used where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(default)]
    profile: BTreeMap<String, Profile>,
}

/// The profiles of one user.
#[derive(Clone, Debug)]
pub struct ProfileFile {
    path: PathBuf,
    content: Content,
}

impl ProfileFile {
    /// Reads the file. One that is absent has no profiles.
    ///
    /// # Errors
    /// [`ProfileError`] when others may read it, or its content is none.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let path = path.to_owned();
        let text = match read_guarded(&path, NOT_OWNER, "600") {
            Ok(text) => text,
            Err(ProfileError::Read(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                let content = Content::default();
                return Ok(Self { path, content });
            }
            Err(error) => return Err(error),
        };
        // The message alone: the text around it may be a password.
        let content =
            toml::from_str(text.reveal()).map_err(|error| invalid(&path, error.message()))?;
        Ok(Self { path, content })
    }

    /// The profile that is used where none is named: its name and itself.
    #[must_use]
    pub fn default_profile(&self) -> Option<(&str, Profile)> {
        let name = self.content.default.as_deref().unwrap_or(DEFAULT_PROFILE);
        let (name, profile) = self.content.profile.get_key_value(name)?;
        Some((name, self.with_whole_paths(profile)))
    }

    /// The profile with this name.
    ///
    /// # Errors
    /// [`ProfileError::Unknown`].
    pub fn profile(&self, name: &str) -> Result<Profile, ProfileError> {
        let profile = self.content.profile.get(name);
        let profile = profile.ok_or_else(|| {
            let names: Vec<&str> = self.content.profile.keys().map(String::as_str).collect();
            let known = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            ProfileError::Unknown {
                name: name.to_owned(),
                file: self.path.clone(),
                known,
            }
        })?;
        Ok(self.with_whole_paths(profile))
    }

    /// Puts the profile in place of one with this name, and writes the file anew. The first one becomes the default.
    ///
    /// # Errors
    /// [`ProfileError::Write`]; the file is then as it was.
    pub fn save(&mut self, name: &str, profile: Profile) -> Result<(), ProfileError> {
        self.content.profile.insert(name.to_owned(), profile);
        if self.content.default.is_none() && name != DEFAULT_PROFILE {
            let has_default = self.content.profile.contains_key(DEFAULT_PROFILE);
            self.content.default = (!has_default).then(|| name.to_owned());
        }
        let text = toml::to_string(&self.content)
            .map_err(|error| invalid(&self.path, &error.to_string()))?;
        let failed = |error| ProfileError::Write(self.path.clone(), error);
        write_private(&self.path, text.as_bytes()).map_err(failed)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Paths in the file are relative to its folder.
    fn with_whole_paths(&self, profile: &Profile) -> Profile {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let whole = |path: &Option<PathBuf>| path.as_ref().map(|path| folder.join(path));
        Profile {
            password_file: whole(&profile.password_file),
            token_file: whole(&profile.token_file),
            ca: whole(&profile.ca),
            cert: whole(&profile.cert),
            key: whole(&profile.key),
            ..profile.clone()
        }
    }
}

/// A password, token or key from a file that others may not read, without the line end.
///
/// # Errors
/// [`ProfileError`] when it cannot be read, or others may read it.
pub fn read_secret(path: &Path) -> Result<Secret, ProfileError> {
    let text = read_guarded(path, OTHERS, "o=")?;
    let line = text.reveal().trim_end_matches(['\r', '\n']);
    Ok(Secret::new(line.to_owned()))
}

fn read_guarded(path: &Path, forbidden: u32, remedy: &'static str) -> Result<Secret, ProfileError> {
    let failed = |error| ProfileError::Read(path.to_owned(), error);
    let file = fs::File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    // Asked of the open file, so that it is the one that is read. A pipe, as of `<(command)`, has its reader alone.
    if found.is_file() && found.permissions().mode() & forbidden != 0 {
        let (file, mode) = (path.to_owned(), remedy);
        return Err(ProfileError::Exposed { file, mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(Secret::new(text))
}

/// Replaces a file as a whole with one that only its owner may read, in a folder that is made where it is absent.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    // Of a file that was left behind the mode is what it was.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Profile {
        Profile {
            url: "https://lab.example".to_owned(),
            user: Some("ann".to_owned()),
            password: Some("a\"b\\c".to_owned()),
            ca: Some("lab.pem".into()),
            ..Profile::default()
        }
    }

    #[test]
    fn profiles_are_written_for_their_owner_alone_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapgate/client.toml");
        let mut file = ProfileFile::read(&path).unwrap();
        assert!(file.default_profile().is_none(), "absent: no profiles");
        file.save("lab", lab()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600, "the file");
        assert_eq!(mode(path.parent().unwrap()), 0o700, "its folder");
        let file = ProfileFile::read(&path).unwrap();
        let (name, found) = file.default_profile().unwrap();
        assert_eq!(name, "lab", "the first is the default");
        assert_eq!(found.password, lab().password, "quoted");
        let ca = found.ca.unwrap();
        assert_eq!(ca, path.with_file_name("lab.pem"), "beside the file");
        assert!(!format!("{:?}", lab()).contains("a\"b"), "never printed");
        let error = file.profile("prod").unwrap_err().to_string();
        assert!(error.contains("it has lab"), "{error}");
    }

    #[test]
    fn files_that_others_may_read_are_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.toml");
        ProfileFile::read(&path).unwrap().save("a", lab()).unwrap();
        let rows = [
            (0o600, true, true),
            (0o640, false, true),
            (0o644, false, false),
        ];
        for (mode, as_profiles, as_secret) in rows {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let found = ProfileFile::read(&path);
            assert_eq!(found.is_ok(), as_profiles, "{mode:o}");
            if let Err(error) = found {
                let text = error.to_string();
                assert!(text.contains("chmod 600 /"), "{mode:o}: {text}");
            }
            assert_eq!(read_secret(&path).is_ok(), as_secret, "{mode:o}");
        }
    }

    #[test]
    fn an_error_of_the_file_does_not_show_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.toml");
        let text =
            "[profile.a]\nurl = \"https://x\"\npassword = \"hunter2\"\npasword = \"hunter2\"\n";
        write_private(&path, text.as_bytes()).unwrap();
        let error = ProfileFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("pasword"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
