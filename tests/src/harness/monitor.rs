//! What a monitor sees of the relay: its pages, and its metrics as samples.
//!
//! Owns one request a connection, as a scrape is one. Floor: none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// Asks for one page: the status and the text; none when nobody answers, or not whole.
pub fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, text) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some((status, text.to_owned()))
}

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// From the text format of Prometheus.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The value of one sample, named as in the text without `wavegate_`.
    ///
    /// # Panics
    /// If there is none.
    pub fn value(&self, sample: &str) -> f64 {
        let wanted = format!("wavegate_{sample} ");
        let found = self.0.lines().find_map(|line| line.strip_prefix(&wanted));
        found.unwrap_or_else(|| panic!("no sample {sample} in\n{}", self.0)).parse().unwrap()
    }

    /// The sum of all samples of one family, named without `wavegate_`, whose labels have all of
    /// these in them.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let wanted = format!("wavegate_{family}{{");
        let samples = self.0.lines().filter_map(|line| line.strip_prefix(&wanted));
        let samples = samples.filter(|sample| labels.iter().all(|label| sample.contains(label)));
        samples.map(|sample| sample.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The values of a label over all samples of one family, named without `wavegate_`.
    pub fn values_of(&self, family: &str, label: &str) -> BTreeSet<String> {
        let (family, label) = (format!("wavegate_{family}{{"), format!("{label}=\""));
        let samples = self.0.lines().filter_map(|line| line.strip_prefix(&family));
        samples
            .filter_map(|sample| sample.split_once(&label)?.1.split('"').next())
            .map(str::to_owned)
            .collect()
    }

    /// All families by their full names, each with the names of its labels. The bounds of a
    /// distribution are not one.
    pub fn families(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut families = BTreeMap::<String, BTreeSet<String>>::new();
        let mut family = String::new();
        for line in self.0.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                rest.split(' ').next().unwrap().clone_into(&mut family);
            }
            let labels = families.entry(family.clone()).or_default();
            if line.starts_with('#') {
                continue;
            }
            // No value of a label has a quote in it.
            let parts = line.split_once('{').map_or("", |(_, rest)| rest).split('"').step_by(2);
            let names = parts.filter_map(|part| part.trim_start_matches(',').strip_suffix('='));
            labels.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
        families.remove("");
        families
    }
}
