//! The relay's figures, as its monitors get them.
//!
//! Owns asking for them and the sums; starts nothing. Floor: none.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;

/// How long the relay may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// One moment's figures.
pub(super) struct Figures(String);

impl Figures {
    /// Asks the relay whose admin address this is.
    pub(super) fn of(admin: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(admin).context("no connection for figures")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").context("no whole answer")?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "figures: {head}");
        Ok(Self(text.to_owned()))
    }

    /// The sum of all series of this name that have this label, where one is given.
    pub(super) fn sum(&self, name: &str, label: Option<(&str, &str)>) -> anyhow::Result<f64> {
        let label = label.map(|(key, value)| format!("{key}=\"{value}\""));
        let mut sum = None;
        for line in self.0.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            if found != name {
                continue;
            }
            let value: f64 = value.parse().with_context(|| format!("{line}: no number"))?;
            let counts = label.as_ref().is_none_or(|label| labels.contains(label.as_str()));
            *sum.get_or_insert(0.0) += if counts { value } else { 0.0 };
        }
        sum.with_context(|| format!("the relay has no {name}"))
    }

    /// The least bound of a histogram's buckets that so many of 1000 observations do not exceed,
    /// since `before`, which has the same series.
    pub(super) fn quantile(&self, before: &Self, name: &str, permille: u32) -> anyhow::Result<f64> {
        let prefix = format!("{name}_bucket{{");
        let series = |text: &str| -> Vec<(String, f64)> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
            let cells = lines.filter_map(|line| {
                let (labels, count) = line.rsplit_once(' ')?;
                let bound = labels.split_once("le=\"")?.1.split_once('"')?.0;
                Some((bound.to_owned(), count.parse().ok()?))
            });
            cells.collect()
        };
        let (old, new) = (series(&before.0), series(&self.0));
        let counts: Vec<f64> = new.iter().zip(&old).map(|(new, old)| new.1 - old.1).collect();
        let all = *counts.last().with_context(|| format!("the relay has no {name}"))?;
        let wanted = all * f64::from(permille) / 1000.0;
        let at = counts.iter().position(|&count| count >= wanted).context("no bucket")?;
        if new[at].0 == "+Inf" { Ok(f64::INFINITY) } else { Ok(new[at].0.parse()?) }
    }

    /// Messages in the spool.
    pub(super) fn spooled(&self) -> anyhow::Result<f64> {
        self.sum("wavegate_spool_messages", None)
    }

    /// Messages that a window, a policy or an operator holds.
    pub(super) fn held(&self) -> anyhow::Result<f64> {
        self.sum("wavegate_spool_messages", Some(("state", "held")))
    }

    /// Recipients that were delivered from the spool, or directly.
    pub(super) fn delivered(&self) -> anyhow::Result<f64> {
        self.sum("wavegate_recipients_ended_total", Some(("end", "delivered")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop here")]
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let text = "# HELP a x\na{instance=\"1\",state=\"held\"} 3\na{instance=\"2\",state=\"ready\"} 4\nab 9\n";
        let figures = Figures(text.into());
        assert_eq!(figures.sum("a", None).unwrap(), 7.0);
        assert_eq!(figures.sum("a", Some(("state", "held"))).unwrap(), 3.0);
        assert_eq!(figures.sum("a", Some(("state", "later"))).unwrap(), 0.0);
        figures.sum("b", None).unwrap_err();
    }

    #[test]
    fn a_quantile_is_of_what_came_since() {
        let text = |counts: [u32; 3]| {
            let [fast, slow, all] = counts;
            Figures(format!(
                "g_bucket{{le=\"0.001\"}} {fast}\ng_bucket{{le=\"0.01\"}} {slow}\n\
                 g_bucket{{le=\"+Inf\"}} {all}\ng_count 9\n"
            ))
        };
        let (before, after) = (text([0, 100, 100]), text([990, 1099, 1100]));
        assert_eq!(after.quantile(&before, "g", 990).unwrap(), 0.001);
        assert_eq!(after.quantile(&before, "g", 999).unwrap(), 0.01);
        assert_eq!(after.quantile(&before, "g", 1000).unwrap(), f64::INFINITY);
        after.quantile(&before, "h", 999).unwrap_err();
    }
}
