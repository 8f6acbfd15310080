//! One request through the gate: route, version, remembered credentials, grants, negotiation and reply; and bodies.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a program that measures, and has nothing to save when something is wrong"
)]

mod rig;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;

use rig::Request;
use rig::Rig;

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn measure(criterion: &mut Criterion, name: &str, rig: &Rig, request: &Request, expected: u16) {
    let runtime = runtime();
    let sent = runtime.block_on(rig.send(request));
    assert_eq!(
        sent.response.status().as_u16(),
        expected,
        "{name}: {sent:?}"
    );
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| runtime.block_on(rig.send(request)));
    });
}

fn gets(criterion: &mut Criterion) {
    for grants in [1, 100, 10_000] {
        let name = format!("get, {grants} grants");
        measure(criterion, &name, &Rig::new(grants), &Request::get(), 200);
    }
}

fn bodies(criterion: &mut Criterion) {
    measure(
        criterion,
        "update with a body",
        &Rig::new(1),
        &Request::update(),
        202,
    );
}

criterion_group!(benches, gets, bodies);
criterion_main!(benches);
