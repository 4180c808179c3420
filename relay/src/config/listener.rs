//! `[[listener]]`: its keys, defaults and bounds. What one of `type = "link"` has of its own is
//! `link`'s business. Floor 1.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    LinkListener, ListenerConfig, auth, diagnostic::Located, link, reader::Section, redirect,
    relay::ListenerPlaces, tls, values,
};

/// One `[[listener]]`, by its type.
pub(super) enum Listener {
    Smtp(Box<(ListenerConfig, ListenerPlaces)>),
    Link(Box<(LinkListener, ListenerPlaces)>),
}

/// What listeners of all types say.
pub(super) struct Common {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) upstreams: Vec<String>,
}

/// Reads the one at this position.
pub(super) fn read((index, section): (usize, Section<'_>), base: &Path) -> Listener {
    let given = section.get("name");
    let name = match &given {
        Some(value) => value.parse("a name in quotes", values::name),
        None => {
            let value = format!("listener-{}", index + 1);
            Some(Located { value, place: section.place() })
        }
    };
    let example = "an address, such as \"127.0.0.1:2525\"";
    let address =
        section.require("address", example).and_then(|v| v.parse(example, values::address));
    let upstreams = section.list("upstreams", "\"legacy\"", values::name);
    if let Some(value) = section.empty_list("upstreams") {
        value.error("is empty, so that this listener could reach nothing; leave it out for all");
    }
    let places = ListenerPlaces {
        name: name.as_ref().map(|found| found.place.clone()),
        address: address.as_ref().map(|found| found.place.clone()),
        upstreams: upstreams.clone().unwrap_or_default(),
        auth: None,
    };
    let common = Common {
        name: name.map(|found| found.value).unwrap_or_default(),
        address: address.map_or(NOWHERE, |found| found.value),
        upstreams: upstreams.into_iter().flatten().map(|found| found.value).collect(),
    };
    match link::is_listener(&section) {
        true => {
            let listener = link::listener(section, base, common);
            Listener::Link(Box::new((listener, places)))
        }
        false => Listener::Smtp(Box::new(read_smtp(section, base, common, places))),
    }
}

fn read_smtp(
    section: Section<'_>,
    base: &Path,
    common: Common,
    places: ListenerPlaces,
) -> (ListenerConfig, ListenerPlaces) {
    link::no_listener(&section);
    let Common { name, address, upstreams } = common;
    let allow = match section.list("allow", "\"192.0.2.0/24\"", values::network) {
        None => loopback(),
        Some(list) => {
            check_allow(&section, &list);
            list.into_iter().map(|found| found.value).collect()
        }
    };
    let proxies = section.list("proxies", "\"192.0.2.7\"", values::network).unwrap_or_default();
    let xclient = section.list("xclient", "\"192.0.2.7\"", values::network).unwrap_or_default();
    let redirect = redirect::listener(&section, places.address.is_some().then_some(address));
    let errors = section.report().errors();
    let tls = section.section("tls").and_then(|section| tls::listener(section, base));
    let tls_is_wrong = section.report().errors() > errors;
    let auth = section
        .section("auth")
        .and_then(|section| auth::listener(section, base, tls.as_ref(), tls_is_wrong));
    let (auth, of_auth) = auth.unzip();
    section.finish();
    let listener = ListenerConfig {
        name,
        address,
        allow,
        proxies: proxies.into_iter().map(|found| found.value).collect(),
        redirect,
        xclient: xclient.into_iter().map(|found| found.value).collect(),
        upstreams,
        tls,
        auth,
    };
    (listener, ListenerPlaces { auth: of_auth, ..places })
}

/// Stands in for an address that was refused, in a configuration that is then refused too.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn loopback() -> Vec<IpNet> {
    vec![
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    ]
}

fn check_allow(section: &Section<'_>, list: &[Located<IpNet>]) {
    if let Some(value) = section.empty_list("allow") {
        value.error("is empty, so that nobody could relay; leave it out for loopback only");
    }
    for net in list {
        // An eighth of all addresses: 2000::/3 is the whole IPv6 internet.
        if net.value.prefix_len() <= 3 {
            section.report().warn(
                &net.place,
                format!(
                    "{} lets the whole internet relay (an open relay); name your own networks",
                    net.value
                ),
            );
        }
    }
}
