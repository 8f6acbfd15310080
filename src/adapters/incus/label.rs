//! What the gateway writes about a snapshot.

use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::adapters::incus::names;
use crate::model::BackupPatch;
use crate::model::NewBackup;
use crate::model::Patch;

/// The version of the label. Later ones may add members, and change none.
const LABEL_VERSION: u32 = 1;

/// What the gateway writes about a snapshot, as JSON in the description of its volume.
///
/// New snapshots inherit descriptions, so a label counts only for the snapshot it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotLabel {
    /// The version of this form.
    snapgate: u32,
    /// When the snapshot was made that this is about, as the VM manager writes it.
    #[serde(rename = "for")]
    about: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<String>,
    #[serde(default)]
    pub(super) protected: bool,
    /// The request that made the snapshot; written when it was whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) made: Option<String>,
    /// The last request that changed this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) changed: Option<String>,
    /// The request that began to restore the VM from it; written before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restoring: Option<String>,
    /// The request that began to remove it; written before. It may be half gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) removing: Option<String>,
    /// What later versions write.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl SnapshotLabel {
    /// Of the snapshot made at that time, from the description of its volume. What a person wrote there is kept as
    /// the description.
    pub(super) fn parse(about: &str, text: &str) -> Self {
        let empty = Self {
            snapgate: LABEL_VERSION,
            about: about.to_owned(),
            name: None,
            description: None,
            tags: Vec::new(),
            protected: false,
            made: None,
            changed: None,
            restoring: None,
            removing: None,
            rest: Map::new(),
        };
        match serde_json::from_str::<Self>(text) {
            Ok(label) if label.about == about => label,
            Ok(_inherited) => empty,
            Err(_not_a_label) => Self {
                description: Some(text.to_owned()).filter(|text| !text.is_empty()),
                ..empty
            },
        }
    }

    /// What a new backup says about itself.
    pub(super) fn set_from_new(&mut self, new: &NewBackup) {
        self.name = Some(new.name.as_str().to_owned());
        self.description = new
            .description
            .as_ref()
            .map(|description| description.as_str().to_owned());
        self.tags = new.tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        self.protected = new.protected;
    }

    /// What an update changes.
    pub(super) fn apply_patch(&mut self, patch: &BackupPatch) {
        if let Some(name) = &patch.name {
            self.name = Some(name.as_str().to_owned());
        }
        match &patch.description {
            Patch::Keep => {}
            Patch::Set(text) => self.description = Some(text.as_str().to_owned()),
            Patch::Clear => self.description = None,
        }
        match &patch.tags {
            Patch::Keep => {}
            Patch::Set(all) => self.tags = all.iter().map(|tag| tag.as_str().to_owned()).collect(),
            Patch::Clear => self.tags.clear(),
        }
        self.protected = patch.protected.apply(Some(self.protected)).unwrap_or(false);
    }

    /// The description to write.
    pub(super) fn to_text(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Whether the snapshot can be restored: a gateway's own only once it was labelled as complete, and none whose
    /// deletion has begun.
    pub(super) fn is_complete(&self, snapshot: &str) -> bool {
        self.removing.is_none() && (self.made.is_some() || !names::is_minted(snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tag;

    #[test]
    fn labels_count_for_the_snapshot_they_name_and_survive_writing() {
        let at = "2026-11-23T12:00:00Z";
        let mut label = SnapshotLabel::parse(at, "written by hand");
        assert_eq!(
            label.description.as_deref(),
            Some("written by hand"),
            "kept"
        );
        label.apply_patch(&BackupPatch {
            tags: Patch::Set(vec![Tag::new("t").unwrap()]),
            protected: Patch::Set(true),
            ..BackupPatch::default()
        });
        let text = label.to_text().replace("}", ",\"later\":1}");
        let again = SnapshotLabel::parse(at, &text);
        assert_eq!((again.tags.len(), again.protected), (1, true), "read again");
        assert!(
            again.to_text().contains("\"later\":1"),
            "members of later versions"
        );
        let inherited = SnapshotLabel::parse("2026-11-24T12:00:00Z", &text);
        assert_eq!(
            inherited,
            SnapshotLabel::parse("2026-11-24T12:00:00Z", ""),
            "ignored"
        );
    }
}
