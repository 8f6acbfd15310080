//! The `cloudapi` adapter under the conformance suite, against another gateway and the Python example.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snapgate::adapters::adapter::*;
use snapgate::adapters::cloudapi::CloudApi;
use snapgate::adapters::cloudapi::Config;
use snapgate::adapters::transport::Address;
use snapgate::model::*;
use snapgate::runtime::SystemClock;
use tempfile::TempDir;

use crate::cloudapi::servers::Python;
use crate::cloudapi::servers::config;
use crate::cloudapi::servers::folder_with_vm;
use crate::cloudapi::servers::inner;
use crate::conformance::AdapterFixture;
use crate::conformance::kills::kill_at_every_moment;
use crate::conformance::suite::run_suite;
use crate::harness::Process;
use crate::harness::eventually;
use crate::harness::metric;

struct ServerFixture<S> {
    name: &'static str,
    config: Config,
    folder: TempDir,
    /// Of a server that says how many are connected to it.
    admin: Option<SocketAddr>,
    _server: S,
}

impl<S> ServerFixture<S> {
    fn disk(&self) -> PathBuf {
        self.folder.path().join("vms/33333/disk.img")
    }
}

impl<S> AdapterFixture for ServerFixture<S> {
    fn lists_vms(&self) -> bool {
        // The example in Python does not, as servers of the first edition.
        self.admin.is_some()
    }
    fn set_other_vm(&self, id: &str, exists: bool) -> bool {
        let folder = self.folder.path().join("vms").join(id);
        if exists {
            fs::create_dir(folder).unwrap();
        } else {
            fs::remove_dir(folder).unwrap();
        }
        true
    }
    fn unreachable_adapter(&self) -> Option<Arc<dyn Adapter>> {
        let config = Config {
            address: Address::Unix("/nowhere".into()),
            ..self.config.clone()
        };
        Some(Arc::new(
            CloudApi::new(&config, SystemClock::shared()).unwrap(),
        ))
    }
    fn name(&self) -> &'static str {
        self.name
    }
    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(CloudApi::new(&self.config, SystemClock::shared()).unwrap())
    }
    fn vm(&self) -> VmId {
        VmId::new("33333").unwrap()
    }
    fn write(&self, content: u64) {
        fs::write(self.disk(), content.to_string()).unwrap();
    }
    fn content(&self) -> u64 {
        fs::read_to_string(self.disk()).unwrap().parse().unwrap()
    }
    fn killed(&self) {
        if let Some(admin) = self.admin {
            let connected = || metric(admin, "snapgate_connections ");
            eventually("the server misses the gateway", || connected() == 0.0);
        }
    }
    fn settle(&self) -> Option<Duration> {
        // What the server read from the gateway that was killed it has taken up by then.
        self.admin.map(|_| Duration::from_secs(1))
    }
    fn evidence_window(&self) -> Option<Duration> {
        // Where the state alone is evidence, it is there at once or never.
        (self.config.recovery == Recovery::NoTrace).then_some(Duration::from_secs(1))
    }
}

fn on_snapgate(name: &'static str, recovery: Recovery) -> ServerFixture<Process> {
    let folder = folder_with_vm();
    let server = inner(folder.path());
    ServerFixture {
        name,
        config: config(Address::Loopback(server.api), recovery),
        folder,
        admin: Some(server.admin),
        _server: server,
    }
}

async fn behaves_on_snapgate(name: &'static str, recovery: Recovery) {
    run_suite(&on_snapgate(name, recovery)).await;
}

#[apply(test)]
fn snapgate_is_left_by_a_gateway_killed_between_any_two_steps() {
    kill_at_every_moment(&on_snapgate("cloudapi on snapgate", Recovery::ReplaySafe));
}

#[apply(test)]
fn snapgate_is_left_by_a_gateway_that_knows_its_statuses_killed_between_any_two_steps() {
    let name = "cloudapi on snapgate, listable";
    kill_at_every_moment(&on_snapgate(name, Recovery::Listable));
}

#[apply(test)]
fn snapgate_is_left_by_a_gateway_that_knows_its_state_killed_between_any_two_steps() {
    let name = "cloudapi on snapgate, no trace";
    kill_at_every_moment(&on_snapgate(name, Recovery::NoTrace));
}

#[apply(test)]
async fn cloudapi_behaves_on_snapgate() {
    behaves_on_snapgate("cloudapi on snapgate", Recovery::ReplaySafe).await;
}

#[apply(test)]
async fn cloudapi_behaves_on_snapgate_by_its_statuses() {
    behaves_on_snapgate("cloudapi on snapgate, listable", Recovery::Listable).await;
}

#[apply(test)]
async fn cloudapi_behaves_on_snapgate_by_state() {
    behaves_on_snapgate("cloudapi on snapgate, no trace", Recovery::NoTrace).await;
}

async fn behaves_on_python(name: &'static str, recovery: Recovery) {
    let folder = folder_with_vm();
    let server = Python::start(folder.path());
    let config = config(Address::Unix(folder.path().join("s")), recovery);
    let fixture = ServerFixture {
        name,
        config,
        folder,
        admin: None,
        _server: server,
    };
    run_suite(&fixture).await;
}

#[apply(test)]
async fn cloudapi_behaves_on_python() {
    behaves_on_python("cloudapi on python", Recovery::ReplaySafe).await;
}

#[apply(test)]
async fn cloudapi_behaves_on_python_by_its_statuses() {
    behaves_on_python("cloudapi on python, listable", Recovery::Listable).await;
}
