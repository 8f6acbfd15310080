//! `[backend.qemu]`.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::adapter::Adapter;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::kind::WarningContext;
use crate::adapters::qemu::Config;
use crate::adapters::qemu::Qemu;
use crate::adapters::qemu::config::PLACEHOLDER;
use crate::model::Pattern;
use crate::schema::LocatedText;
use crate::schema::Section;
use crate::schema::Table;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;
use crate::schema::required_text;

declare_table! { "qemu", false, "VMs of QEMU, running or stopped.",
    QMP: Text = "qmp", required_text("path"), Restart,
        "The monitor socket of a running VM; `{vm}` stands for its id.", Commented = "\"/run/vms/{vm}.qmp\"";
    DISKS: TextList = "disks", TextList { default: Some(&[]), form: "node names" }, Restart,
        "The disks, the one that holds the memory first. None: every writable disk.",
        Commented = "[\"disk0\", \"disk1\"]";
    IMAGES: TextList = "images", TextList { default: Some(&[]), form: "paths" }, Restart,
        "The images of the disks, in the same order, for when the VM is stopped; `{vm}` stands for its id. None: the VM must be running.",
        Commented = "[\"/srv/vms/{vm}.qcow2\", \"/srv/vms/{vm}-data.qcow2\"]";
    QEMU_IMG: Text = "qemu_img", default_text("qemu-img", "program"), Restart,
        "The program that changes images.";
    QEMU_IO: Text = "qemu_io", default_text("qemu-io", "program"), Restart,
        "The program that marks images, so that a later look shows what was done to them; it comes with `qemu-img`.";
    GREETING_TIMEOUT: DurationValue = "greeting_timeout", duration(Duration::from_secs(2), 1, 60), Restart,
        "A monitor that has not sent its greeting by then is in use by another program.";
    IMAGE_TIMEOUT: DurationValue = "image_timeout", duration(Duration::from_secs(900), 1, 24 * 3600), Restart,
        "Time for one change to the images of a stopped VM.";
}

impl AdapterKind for Config {
    const TABLE: Table = TABLE;

    fn read(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Self> {
        let resolve = |found: &LocatedText| section.resolve_path(found).display().to_string();
        let images = section.read_distinct_texts(&IMAGES);
        let disks = section.read_distinct_texts(&DISKS);
        if !images.is_empty() && !disks.is_empty() && images.len() != disks.len() {
            let what = format!("{} images for {} disks", images.len(), disks.len());
            let hint = "name one image for each disk, in the same order";
            section.report_key(IMAGES.name, what, hint);
        }
        let qmp = section.read_text(&QMP);
        for path in images.iter().chain(&qmp) {
            check_placeholders(section, path, context.vms);
        }
        let qemu_img = section.read_text(&QEMU_IMG);
        let qemu_io = section.read_text(&QEMU_IO);
        let greeting_timeout = section.read_duration(&GREETING_TIMEOUT);
        let image_timeout = section.read_duration(&IMAGE_TIMEOUT);
        Some(Self {
            qmp: resolve(&qmp?),
            disks: disks.into_iter().map(|disk| disk.text).collect(),
            images: images.iter().map(resolve).collect(),
            qemu_img: PathBuf::from(qemu_img?.text),
            qemu_io: PathBuf::from(qemu_io?.text),
            greeting_timeout,
            image_timeout,
        })
    }

    fn is_local(&self) -> bool {
        true
    }

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError> {
        Ok(Arc::new(Qemu::new(
            self.clone(),
            Arc::clone(&context.clock),
            context.tasks.clone(),
        )))
    }

    fn warnings(&self, context: &WarningContext<'_>) -> Vec<String> {
        if self.images.is_empty() {
            return Vec::new();
        }
        let programs = [&self.qemu_img, &self.qemu_io].into_iter();
        let missing = programs.filter(|program| !is_found(program, context.program_path));
        missing
            .map(|program| {
                let program = program.display();
                format!("program {program} not found: stopped VMs cannot be backed up or restored")
            })
            .collect()
    }
}

/// Reports a path that is the same for several VMs, which would be one VM then, or that has an unknown placeholder.
fn check_placeholders(section: &Section<'_>, found: &LocatedText, vms: &[Pattern]) {
    let hint = "write {vm} in place of the id of the VM";
    let rest = found.text.replace(PLACEHOLDER, "");
    let is_one_vm = vms.len() <= 1 && !vms.iter().any(|pattern| pattern.prefix().1);
    if let Some((_, after)) = rest.split_once('{') {
        let name = after.split('}').next().unwrap_or_default();
        let what = format!("unknown placeholder \"{{{name}}}\" (expected {{vm}})");
        section.report_text(found, what, hint);
    } else if rest == found.text && !is_one_vm {
        section.report_text(found, "is the same path for every VM of the backend", hint);
    }
}

/// Whether a program exists, by its path or in one of the folders of `PATH`.
fn is_found(program: &Path, path: &str) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    std::env::split_paths(path).any(|folder| folder.join(program).is_file())
}
