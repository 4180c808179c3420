//! What upstreams made of whom mail is from, and of the relay's logins, in a scrape. Floor 4.

use std::sync::atomic::Ordering::Relaxed;

use super::families::Families;
use crate::{relay::Generation, upstream::LoginResult};

/// The counts begin anew when an upstream's configuration changes.
pub(super) fn collect(families: &mut Families, generation: &Generation) {
    let all = || generation.upstreams.iter().map(|(name, upstream)| (&**name, upstream));
    let mut family = families.counter(
        "wavegate_upstream_identity_refused_total",
        "Messages that went without XFORWARD, connections given up for want of XCLIENT, and \
         those whose client the target did not want.",
    );
    for (name, upstream) in all() {
        let counts = upstream.identity_counts();
        for (what, count) in [
            ("xforward", &counts.not_forwarded),
            ("xclient", &counts.no_xclient),
            ("client", &counts.unwanted),
        ] {
            family.count(&[("upstream", name), ("what", what)], count.load(Relaxed));
        }
    }
    let mut family = families.counter(
        "wavegate_upstream_logins_total",
        "Logins of the relay itself at targets, by how they ended.",
    );
    for (name, upstream) in all() {
        for (result, count) in LoginResult::ALL.iter().zip(&upstream.logins().counts) {
            family.count(&[("upstream", name), ("result", result.as_str())], count.load(Relaxed));
        }
    }
}
