//! Rows, and how they are shown.

use crate::stats::Samples;
use serde::Serialize;
use std::fmt::Write;

/// One figure beside its baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured: group, thing, size.
    pub name: String,
    /// Unit of `ours`, `baseline` and `spread`.
    pub unit: &'static str,
    /// Median with Suture.
    pub ours: f64,
    /// Median of what it is compared with, measured in the same run.
    pub baseline: f64,
    /// `ours / baseline`; null where the baseline is zero.
    pub ratio: Option<f64>,
    /// 10th and 90th percentile of `ours`.
    pub spread: [f64; 2],
    /// What the figure is measured against. Shown in the table only.
    #[serde(skip)]
    pub budget: Budget,
    /// What the baseline is. Shown in the table only.
    #[serde(skip)]
    pub against: &'static str,
}

/// What a figure may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Nothing was promised.
    None,
    /// `ours` at most this.
    AtMost(f64),
    /// `ours − baseline` at most this.
    Added(f64),
    /// `ours / baseline` at most this.
    Factor(f64),
}

impl Row {
    /// A row from the samples of both sides.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: &'static str, ours: &Samples, baseline: &Samples) -> Self {
        let (a, b) = (ours.median(), baseline.median());
        Self {
            name: name.into(),
            unit,
            ours: round(a),
            baseline: round(b),
            ratio: (b != 0.0).then(|| round(a / b)),
            spread: [round(ours.quantile(0.1)), round(ours.quantile(0.9))],
            budget: Budget::None,
            against: "",
        }
    }

    /// States the budget.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// Says what the baseline is.
    #[must_use]
    pub fn against(self, against: &'static str) -> Self {
        Self { against, ..self }
    }

    fn kept(&self) -> Option<bool> {
        let (a, b) = (self.ours, self.baseline);
        match self.budget {
            Budget::None => None,
            Budget::AtMost(most) => Some(a <= most),
            Budget::Added(most) => Some(a - b <= most),
            Budget::Factor(most) => Some(a <= most * b),
        }
    }

    fn verdict(&self) -> String {
        let promise = match self.budget {
            Budget::None => return String::new(),
            Budget::AtMost(most) => format!("<= {most}"),
            Budget::Added(most) => format!("<= +{most}"),
            Budget::Factor(most) => format!("<= x{most}"),
        };
        let mark = if self.kept() == Some(true) { "kept" } else { "OVER" };
        format!("{promise} {mark}")
    }
}

/// Four significant digits: more would be noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    // Divides by a whole power of ten for large values: multiplying by 0.1 would show its error.
    if digits >= 0 {
        let scale = 10f64.powi(digits);
        (value * scale).round() / scale
    } else {
        let scale = 10f64.powi(-digits);
        (value / scale).round() * scale
    }
}

/// The versioned document.
#[must_use]
pub fn json(rows: &[Row]) -> String {
    serde_json::json!({ "schema": 1, "rows": rows }).to_string()
}

/// Lines for a reader. `heading` is the first of them.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let name = rows.iter().map(|r| r.name.len()).max().unwrap_or(4);
    let mut text = format!(
        "{:name$}  {:>9} {:>9} {:>7}  {:<17} {:<6} {:<15} baseline is\n",
        "row", "ours", "baseline", "ratio", "p10-p90", "unit", "budget"
    );
    for row in rows {
        let ratio = row.ratio.map_or_else(|| "-".into(), |r| r.to_string());
        let spread = format!("{}-{}", row.spread[0], row.spread[1]);
        let verdict = row.verdict();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:name$}  {:>9} {:>9} {ratio:>7}  {spread:<17} {:<6} {verdict:<15} {}",
            row.name, row.ours, row.baseline, row.unit, row.against
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        let mut samples = Samples::default();
        values.iter().for_each(|v| samples.push(*v));
        samples
    }

    #[test]
    fn four_digits_are_kept() {
        assert_eq!(round(1234.567), 1235.0);
        assert_eq!(round(1_234_567.0), 1_235_000.0);
        assert_eq!(round(0.012_345), 0.01235);
        assert_eq!(round(-1.23456), -1.235);
        assert_eq!(round(0.0), 0.0);
    }

    #[test]
    fn the_document_has_the_fields_of_its_schema_and_no_others() {
        let row =
            Row::new("a.b", "ns", &samples(&[1.0, 2.0, 3.0]), &samples(&[4.0])).budget(Budget::AtMost(1.0));
        let none = Row::new("c", "KiB", &samples(&[1.0]), &samples(&[0.0]));
        assert_eq!(
            json(&[row, none]),
            r#"{"rows":[{"baseline":4.0,"name":"a.b","ours":2.0,"ratio":0.5,"spread":[1.2,2.8],"unit":"ns"},"#
                .to_owned()
                + r#"{"baseline":0.0,"name":"c","ours":1.0,"ratio":null,"spread":[1.0,1.0],"unit":"KiB"}],"schema":1}"#
        );
    }

    #[test]
    fn budgets_are_judged_by_their_kind() {
        let row = Row::new("a", "ns", &samples(&[1.5]), &samples(&[1.0]));
        for (budget, kept) in [
            (Budget::None, None),
            (Budget::AtMost(1.5), Some(true)),
            (Budget::AtMost(1.4), Some(false)),
            (Budget::Added(0.5), Some(true)),
            (Budget::Added(0.4), Some(false)),
            (Budget::Factor(1.5), Some(true)),
            (Budget::Factor(1.2), Some(false)),
        ] {
            assert_eq!(row.clone().budget(budget).kept(), kept, "{budget:?}");
        }
        assert!(row.budget(Budget::Added(0.4)).verdict().ends_with("OVER"));
    }
}
