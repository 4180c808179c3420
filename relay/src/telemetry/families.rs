//! Puts metric families together for the text encoder. Floor 4.

use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

/// The families of one scrape.
#[derive(Default)]
pub(super) struct Families(Vec<MetricFamily>);

/// One family that is being filled.
pub(super) struct Family<'a>(&'a mut MetricFamily);

/// Names and values of labels.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Families {
    /// A family that only goes up. Its name ends in `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::COUNTER)
    }

    /// A family that goes up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::GAUGE)
    }

    /// A family of distributions.
    pub(super) fn histogram(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, MetricType::HISTOGRAM)
    }

    /// The text that is served.
    pub(super) fn text(mut self) -> String {
        // The encoder takes no family without a sample.
        self.0.retain(|family| !family.get_metric().is_empty());
        let text = TextEncoder::new().encode_to_string(&self.0);
        text.expect("each family has a name and a sample, and text can always be written to")
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType) -> Family<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.0.push(family);
        Family(self.0.last_mut().expect("just pushed"))
    }
}

impl Family<'_> {
    /// Adds a count.
    pub(super) fn count(&mut self, labels: Labels<'_>, value: u64) {
        self.value(labels, number(value));
    }

    /// Adds a value.
    pub(super) fn value(&mut self, labels: Labels<'_>, value: f64) {
        let mut metric = labelled(labels);
        if self.0.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0.mut_metric().push(metric);
    }

    /// Adds a distribution.
    pub(super) fn distribution(&mut self, labels: Labels<'_>, distribution: Histogram) {
        let mut metric = labelled(labels);
        metric.set_histogram(distribution);
        self.0.mut_metric().push(metric);
    }
}

/// A distribution from bounds in nanoseconds and counts that are not cumulative; the last count
/// is of what is beyond the last bound.
pub(super) fn distribution_ns(bounds: &[u64], counts: &[u64], sum: u64) -> Histogram {
    let mut cumulative = 0;
    let buckets = bounds.iter().zip(counts).map(|(&bound, count)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(number(bound) / 1e9);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(number(sum) / 1e9);
    histogram
}

/// The format has floating point numbers only: exact up to 2^53.
pub(super) fn number(value: u64) -> f64 {
    value as f64
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}
