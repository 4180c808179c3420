//! Random lives of a store against a model of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use proptest::prelude::*;
use support::*;
use wavegate_spool::*;

#[derive(Debug, Clone, Copy)]
enum Turn {
    Step,
    Close,
    Kill,
    Power(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        40 => Just(Turn::Step),
        1 => Just(Turn::Close),
        2 => Just(Turn::Kill),
        2 => any::<u64>().prop_map(Turn::Power),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn what_was_promised_is_there_after_any_end(
        seed in any::<u64>(),
        turns in prop::collection::vec(turn(), 1..150),
    ) {
        let mut run = Run::new(seed);
        for turn in turns {
            match turn {
                Turn::Step => run.step(),
                Turn::Kill => {
                    // What was not synced stays in the page cache, and may be lost later.
                    let disk = run.disk.inner().clone();
                    drop(run.take_store());
                    run.reopen(disk, false);
                }
                Turn::Power(seed) => run.reopen(run.disk.inner().crash(seed), true),
                Turn::Close => {
                    run.sync();
                    let disk = run.disk.inner().clone();
                    run.take_store().close().unwrap();
                    // A power loss after it changes nothing.
                    run.reopen(disk.crash(seed), false);
                }
            }
            run.read_all();
        }
        let report = verify(&run.disk.inner().copy()).unwrap();
        prop_assert_eq!(report.damage, vec![]);
        prop_assert_eq!(report.messages + report.beyond, run.live.len() as u64);
    }
}
