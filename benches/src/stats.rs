//! Samples and what is printed of them.

/// Measurements of one thing, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a measurement.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds the measurements of another run.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which `share` of the samples lie, interpolated; 0 without samples.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
        let place = share.clamp(0.0, 1.0) * last as f64;
        let below = place.floor() as usize;
        let above = (below + 1).min(last);
        sorted[below] + (sorted[above] - sorted[below]) * place.fract()
    }

    /// Half of the samples are below.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// That quantile as the only sample.
    #[must_use]
    pub fn only(&self, share: f64) -> Self {
        Self(vec![self.quantile(share)])
    }

    /// The same samples in another unit.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|v| v * factor).collect())
    }
}

/// Samples of both sides of a row.
pub type Pair = (Samples, Samples);

/// Adds the measurements of another run to both sides.
pub fn append(to: &mut Pair, more: Pair) {
    to.0.append(more.0);
    to.1.append(more.1);
}

/// Which of some things is measured next: all of them in turn, `rounds` times each; every round begins with another
/// one, so that none profits from its place.
fn turns(rounds: usize, things: usize) -> impl Iterator<Item = usize> {
    (0..rounds).flat_map(move |round| (0..things).map(move |n| (round + n) % things))
}

/// Measures `ours` and `baseline` in turn, `rounds` times each, so that what else happens on the
/// machine meets both. Which goes first alternates, so that neither profits from the other.
///
/// # Errors
/// The first error of either.
pub fn interleave<E>(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64, E>,
    mut baseline: impl FnMut() -> Result<f64, E>,
) -> Result<Pair, E> {
    let (mut a, mut b) = (Samples::default(), Samples::default());
    for side in turns(rounds, 2) {
        match side {
            0 => a.push(ours()?),
            _ => b.push(baseline()?),
        }
    }
    Ok((a, b))
}

/// Measures all of `things` in turn, `rounds` times each; every round begins with another one, so that none profits
/// from its place. The samples are in the order of the things.
pub fn in_turn<T>(rounds: usize, things: &[T], mut measure: impl FnMut(&T) -> f64) -> Vec<Samples> {
    let mut samples = vec![Samples::default(); things.len()];
    for at in turns(rounds, things.len()) {
        samples[at].push(measure(&things[at]));
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_between_samples_in_any_order() {
        let samples = Samples(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(samples.median(), 3.0);
        assert_eq!(samples.quantile(0.1), 1.4);
        assert_eq!(samples.quantile(0.9), 4.6);
        assert_eq!(samples.quantile(1.0), 5.0);
        assert_eq!(samples.scaled(2.0).median(), 6.0);
        assert_eq!(Samples::default().median(), 0.0);
    }

    #[test]
    fn both_sides_get_every_round_and_lead_in_turn() {
        let log = std::cell::RefCell::new(String::new());
        let note = |side| {
            log.borrow_mut().push(side);
            Ok::<f64, ()>(1.0)
        };
        let (a, b) = interleave(3, || note('a'), || note('b')).unwrap();
        assert_eq!(*log.borrow(), "abbaab");
        assert_eq!((a.0.len(), b.0.len()), (3, 3));
    }

    #[test]
    fn every_thing_gets_every_round_and_begins_one() {
        let mut log = String::new();
        let samples = in_turn(3, &['a', 'b', 'c'], |thing| {
            log.push(*thing);
            log.len() as f64
        });
        assert_eq!(log, "abcbcacab");
        assert_eq!(samples[0].0, [1.0, 6.0, 8.0]);
        assert!(samples.iter().all(|s| s.0.len() == 3));
    }
}
