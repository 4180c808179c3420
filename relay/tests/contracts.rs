//! A released contract is for ever: its text never changes, and what was built for it still runs.
#![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]

use std::{collections::BTreeMap, fs, path::Path};

use wavegate::{
    config::{PluginSource, PolicyConfig},
    decision::record::TransactionRecord,
    policy::{HostOptions, PolicyHost, Version, WorkerPolicies},
};

/// BLAKE3 of each released text.
const RELEASED: [(&str, &str); 2] = [
    ("0.1.0", "2baae772c97a61b1b58ae3e1a0a5c7e0689fc5d1e6051c8c523d824b3e77f0c3"),
    ("1.0.0", "58fe1030c3039da95ee539d34cd7280abdd6514f6bc3f267220f91fdda965882"),
];

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn a_released_contract_does_not_change() {
    let mut there: Vec<_> = fs::read_dir(repository().join("wit"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort_unstable();
    assert_eq!(there, RELEASED.map(|(version, _)| version), "every version has a digest here");
    assert_eq!(there, Version::ALL.map(Version::as_str), "every version is loaded");
    for (version, digest) in RELEASED {
        let files: Vec<_> = fs::read_dir(repository().join("wit").join(version)).unwrap().collect();
        assert_eq!(files.len(), 1, "one file");
        let text = fs::read(repository().join(format!("wit/{version}/policy.wit"))).unwrap();
        let found = blake3::hash(&text).to_hex().to_string();
        assert_eq!(found, digest, "wit/{version} is released: make a new version instead");
    }
}

/// The components of a version, as they were built when it was the newest.
fn components(version: Version) -> BTreeMap<String, PolicyConfig> {
    let folder = repository().join("tests/contracts").join(version.as_str());
    let policy = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let config = PolicyConfig {
            settings: match name.as_str() {
                "throttle" => {
                    "{\"limits\":[{\"rate\":\"9/s\",\"learn\":{\"slow\":1.5}}]}".to_owned()
                }
                _ => "{}".to_owned(),
            },
            place: name.clone(),
            ..PolicyConfig::new(name.clone(), PluginSource::File(path))
        };
        (name, config)
    };
    fs::read_dir(folder).unwrap().map(|entry| policy(entry.unwrap().path())).collect()
}

#[test]
fn what_was_built_for_a_released_contract_still_answers() {
    let mut answers = Vec::new();
    for version in Version::ALL {
        let host = PolicyHost::new(None, HostOptions::simulation(1)).unwrap();
        let configs: Vec<_> = components(version).into_values().collect();
        let names: Vec<_> = configs.iter().map(|config| config.name.as_str()).collect();
        assert_eq!(names, ["freeze", "routing", "throttle"]);
        let upstreams = ["legacy".to_owned(), "cloud".to_owned()];
        let set = host.load(&configs, &[], &upstreams, &|_| None).unwrap();
        assert!(set.policies().iter().all(|policy| policy.contract() == version));
        let mut worker = WorkerPolicies::new(host);
        let frozen = "{\"instance\": {\"phase\": \"frozen\"}}";
        let frozen: TransactionRecord = serde_json::from_str(frozen).unwrap();
        answers.push(frozen.with(|tx| {
            let outcome = wavegate::decision::AttemptOutcome {
                upstream: "cloud",
                keys: &[],
                code: 250,
                text: "ok",
                now: tx.now,
            };
            (
                worker.freeze(&set, 0, tx).unwrap(),
                worker.route(&set, 1, tx).unwrap(),
                worker.limits(&set, 2, tx, "cloud", &[0]).unwrap(),
                worker.observe(&set, 2, &outcome).unwrap(),
            )
        }));
    }
    assert!(answers.windows(2).all(|two| two[0] == two[1]), "{answers:?}");
    assert!(answers[0].0.strictness() > 0, "{answers:?}");
    assert_eq!(answers[0].2.rates.len(), 1, "{answers:?}");
}
