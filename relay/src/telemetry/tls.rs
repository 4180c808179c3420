//! TLS and logins in a scrape: sessions by cipher suite, failures by reason, and when certificates
//! expire. Floor 4.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    Telemetry,
    families::{Families, number},
};
use crate::{
    event::{LoginFailure, TlsFailure},
    message::{CIPHERS, Secured},
    relay::Generation,
    tls::Counts,
};

impl Telemetry {
    pub(super) fn tls(&self, families: &mut Families, generation: &Generation) {
        let listeners = self.listeners.all();
        let all: Vec<_> = listeners.iter().map(|(name, counts)| (&**name, &counts.tls)).collect();
        sessions(families, &all, "listener", "wavegate_tls", "with clients");
        certificates(families, generation);
        let mut family =
            families.counter("wavegate_logins_total", "Logins of clients that succeeded.");
        for (name, counts) in &listeners {
            family.count(&[("listener", name)], counts.logins.load(Relaxed));
        }
        let mut family =
            families.counter("wavegate_login_failures_total", "Logins of clients that failed.");
        for (name, counts) in &listeners {
            for failure in LoginFailure::ALL {
                let labels = [("listener", &**name), ("reason", failure.as_str())];
                family.count(&labels, counts.logins_failed[failure as usize].load(Relaxed));
            }
        }
        let upstreams = generation.upstreams.iter();
        let upstreams: Vec<(&str, Arc<Counts>)> =
            upstreams.map(|(name, upstream)| (&**name, upstream.tls_counts())).collect();
        let all: Vec<_> = upstreams.iter().map(|(name, counts)| (*name, &**counts)).collect();
        sessions(families, &all, "upstream", "wavegate_upstream_tls", "with targets");
        let mut family = families.counter(
            "wavegate_upstream_tls_declined_total",
            "Connections to targets without TLS, because they did not offer it or refused it.",
        );
        for (name, counts) in &all {
            family.count(&[("upstream", name)], counts.declined.load(Relaxed));
        }
    }
}

fn sessions(
    families: &mut Families,
    all: &[(&str, &Counts)],
    label: &str,
    prefix: &str,
    whose: &str,
) {
    let mut family = families.counter(
        &format!("{prefix}_sessions_total"),
        &format!("TLS sessions {whose}, by what was agreed on."),
    );
    for (name, counts) in all {
        for (cipher, count) in counts.begun.iter().enumerate() {
            let version = Secured { cipher, resumed: false }.version();
            let labels = [(label, *name), ("version", version), ("cipher", CIPHERS[cipher])];
            family.count(&labels, count.load(Relaxed));
        }
    }
    let mut family = families.counter(
        &format!("{prefix}_resumed_total"),
        &format!("TLS sessions {whose} that went on from an earlier one."),
    );
    for (name, counts) in all {
        family.count(&[(label, name)], counts.resumed.load(Relaxed));
    }
    let mut family = families.counter(
        &format!("{prefix}_failures_total"),
        &format!("TLS handshakes {whose} that failed."),
    );
    for (name, counts) in all {
        for failure in TlsFailure::ALL {
            let labels = [(label, *name), ("reason", failure.as_str())];
            family.count(&labels, counts.failed[failure as usize].load(Relaxed));
        }
    }
}

fn certificates(families: &mut Families, generation: &Generation) {
    let mut family = families.gauge(
        "wavegate_tls_certificate_expires_timestamp_seconds",
        "When a listener's certificate expires, in seconds since 1970.",
    );
    for listener in &generation.config.listeners {
        let Some(acceptor) = generation.tls.acceptor(&listener.name) else { continue };
        for (file, expires) in &acceptor.certificates {
            let file = file.display().to_string();
            let labels = [("listener", &*listener.name), ("certificate", &*file)];
            family.value(&labels, number(expires.0) / 1000.0);
        }
    }
    for link in &generation.config.links {
        let Some(acceptor) = generation.tls.link_gateway(&link.name) else { continue };
        let (file, expires) = &acceptor.certificate;
        let file = file.display().to_string();
        let labels = [("listener", &*link.name), ("certificate", &*file)];
        family.value(&labels, number(expires.0) / 1000.0);
    }
}
