//! Clocks of gateways that are set while operations run: leases do not follow them, and no promise depends on them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::cluster::DELAY;
use crate::cluster::etcd_bed::EtcdBed;
use crate::cluster::gateways::FAKETIME;
use crate::cluster::gateways::Gateways;
use crate::cluster::gateways::Setup;
use crate::cluster::gateways::is_active;
use crate::cluster::lives;
use crate::cluster::print_verdict;
use crate::cluster::require_etcd;
use crate::harness::eventually;
use crate::kill::clients;
use crate::kill::clients::World;
use crate::kill::history;
use crate::kill::simulated_vmm::Behaviour;
use crate::kill::simulated_vmm::FakeVmm;
use crate::prng::Prng;
use crate::runner::skip;

/// Seconds by which a clock is set apart from the others.
const STEPS: [i64; 6] = [-86_400, -3600, -30, 30, 3600, 86_400];

/// Each gateway reports how far its clock is apart from that of the active one.
fn check_offset(gateways: &Gateways) {
    let active = gateways.active();
    let (ahead, behind) = ((active + 1) % 3, (active + 2) % 3);
    for (number, seconds) in [(active, 0), (ahead, 90), (behind, -600)] {
        gateways.set_clock(number, seconds);
    }
    for (number, expected) in [(active, 0.0), (ahead, 90.0), (behind, -600.0)] {
        eventually("the offset is known", || {
            let metrics = Client::bare(gateways.get(number).admin).get("/metrics");
            let text = String::from_utf8(metrics.body).unwrap();
            let mut lines = text.lines();
            let line =
                lines.find(|line| line.starts_with("snapgate_cluster_clock_offset_seconds{"));
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            value.is_some_and(|offset| (offset - expected).abs() < 1.0)
        });
    }
}

#[apply(test)]
fn clocks_that_jump_neither_move_the_leadership_nor_break_a_promise() {
    require_etcd();
    if !Path::new(FAKETIME).exists() {
        skip("no libfaketime (Debian package faketime)");
    }
    let etcd = EtcdBed::start(3);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vmm");
    let vmm = FakeVmm::start(&Behaviour {
        socket: socket.clone(),
        once: false,
        tasks: true,
        delay: DELAY,
    });
    let setup = Setup {
        recovery: "listable",
        settle: "400ms",
        lease: 3,
        simulator: &socket,
        peers: true,
        clocks: true,
    };
    let mut gateways = Gateways::start(3, &etcd, setup);
    let world = Arc::new(World {
        patience: Duration::from_secs(10),
        is_conditional: true,
        ..World::default()
    });
    *world.gateways.lock().unwrap() = gateways.addresses();
    let clients = clients::start(&world, 4);
    let mut prng = Prng::new(5);
    let mut taken_over = 0;
    for life in 0..lives() {
        let active = gateways.active();
        // Every third time another one: it has the wrong clock when it takes over.
        let number = if life % 3 == 2 {
            (active + 1) % 3
        } else {
            active
        };
        let step = usize::try_from(prng.below(6)).unwrap();
        gateways.set_clock(number, STEPS[step]);
        std::thread::sleep(Duration::from_millis(1500 + prng.below(1500)));
        assert!(
            is_active(gateways.get(active)),
            "a clock is no reason to give up:\n{}",
            gateways.logs()
        );
        if life % 4 == 3 {
            gateways.running[active] = None;
            gateways.active();
            gateways.restart(active);
            *world.gateways.lock().unwrap() = gateways.addresses();
            taken_over += 1;
        }
    }
    check_offset(&gateways);
    let accepted = clients::finish(&world, clients);
    let verdict = history::judge(&accepted, &vmm.executions(), false);
    print_verdict("clocks that jump", &format!("{} jumps", lives()), &verdict);
    assert_eq!(verdict.wrong(), 0, "{verdict:#?}\n{}", gateways.logs());
    assert!(
        verdict.accepted >= lives(),
        "something was done: {verdict:?}"
    );
    assert!(taken_over > 0, "and another gateway took over");
}
