//! Damage to stored images is found wherever it is, and backups of earlier versions are restored.

use std::fs;
use std::os::unix::fs::FileExt;

use super::test_fixture::Fixture;
use super::test_fixture::by;
use super::test_fixture::restore;
use super::test_fixture::target;
use super::*;

#[tokio::test]
async fn a_flipped_bit_is_found_wherever_it_is() {
    let fixture = Fixture::new();
    let image = fs::File::create(fixture.disk("b.raw")).unwrap();
    image.set_len(6 << 20).unwrap();
    let last = (6 << 20) - 1;
    image.write_all_at(&[1; 3 << 20], 1 << 20).unwrap();
    image.write_all_at(&[1], last).unwrap();
    let backup = fixture.backup(1).await;
    let image = fixture.vm_backups().join("1/disks/b.raw");
    let image = fs::OpenOptions::new().read(true).write(true).open(image);
    let image = image.unwrap();
    let rows = [
        ("the first byte, in a hole", 0),
        ("the first byte of data", 1 << 20),
        ("the last byte of a piece", (1 << 20) + (256 << 10) - 1),
        ("the first byte of the next", (1 << 20) + (256 << 10)),
        ("the first byte of a block", 2 << 20),
        ("the last byte of data", (4 << 20) - 1),
        ("a byte of the hole between", 5 << 20),
        ("the last byte", last),
    ];
    for (name, at) in rows {
        let mut byte = [0];
        image.read_exact_at(&mut byte, at).unwrap();
        image.write_all_at(&[byte[0] ^ 16], at).unwrap();
        let failure = fixture.failure(&restore(&backup), 2).await;
        assert_eq!(failure, Some(FaultKind::Damaged), "{name}");
        image.write_all_at(&byte, at).unwrap();
    }
    assert_eq!(
        fixture.failure(&restore(&backup), 3).await,
        None,
        "flipped back"
    );
    assert_eq!(fixture.leftovers(), Vec::<String>::new(), "nothing is left");
}

#[tokio::test]
async fn a_backup_of_an_earlier_version_is_restored() {
    let fixture = Fixture::new();
    let backup = fixture.backup(1).await;
    // As version 0.1.0 wrote it, for these very disks.
    let manifest = r#"{
  "format": 1,
  "vm": "vm",
  "id": "1",
  "token": "31415926535897932384",
  "made_by": "snapgate-1",
  "changed_by": null,
  "name": "of old",
  "description": null,
  "tags": [
    "nightly"
  ],
  "protected": false,
  "kind": "full",
  "created": 1795482123456,
  "algorithm": "blake3-1mib-v1",
  "disks": [
    {
      "name": "a.raw",
      "size": 2621440,
      "data": 2621440,
      "checksum": "cff60d2920bb2a0a2229666a4d7199890e74e46f35be3065d8729ba759d18b03"
    },
    {
      "name": "b.raw",
      "size": 1048576,
      "data": 65536,
      "checksum": "0038ca545d0da406b3ad8c0c4c3c57cb5b24a931f480d398e327fa85f8085442"
    }
  ]
}"#;
    fs::write(fixture.vm_backups().join("1/manifest.json"), manifest).unwrap();
    let old = fixture
        .files
        .read_backup(&target("vm", "1"), by())
        .await
        .unwrap();
    assert_eq!(old.name.as_str(), "of old", "it is read");
    assert_ne!(old.identity, backup.identity, "and is another one");
    fixture.fill(2);
    assert_eq!(fixture.failure(&restore(&old), 2).await, None, "restored");
    assert_eq!(fixture.generations(), Some((1, 1)), "both disks");
}
