//! Weights to signed bytes that no kernel saturates, and the plan that keeps outlier activations from spoiling
//! everybody's scale.
//!
//! Weights: one scale an output channel. The kernels of [`flashbulb_kernels::encoder`] add neighbouring products (rows
//! 2i and 2i+1 of a column) in 16 bits and ask that the codes of the same sign in each such pair add up to at most
//! [`PAIR_MAX`]. Halving the range guarantees that and wastes a bit; here each column takes the widest range whose few
//! offending pairs, shaved down to the bound, cost least.
//!
//! Activations are quantised with one scale a token, and BERT-family models have channels much larger than the rest,
//! which widen everybody's step. Two remedies, from the channels' peaks over calibration texts. A channel of the inputs
//! that come out of a normalisation is divided by the square root of its share, and its weight row multiplied by it, so
//! that activations and weights share the difficulty (Xiao et al., "SmoothQuant", ICML 2023). What still stands out is
//! divided by `m` and repeated `m` times, its weight row too: the sum is the same and the scale becomes `m` times finer
//! for everyone else (Zhao et al., "Improving Neural Network Quantization without Retraining using Outlier Channel
//! Splitting", ICML 2019). Measured on all-MiniLM-L6-v2 and the texts of `tests/fixtures/minilm-reference.json`, mean
//! and least cosine to f32: splitting alone 0.9980 and 0.988, both 0.9984 and 0.993.
//!
//! It must not know the graph.

use flashbulb_kernels::encoder::PAIR_MAX;

/// A matrix multiplication whose input is split: the same three in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The input of query, key and value.
    Attention,
    /// The input of the first feed-forward matrix.
    Widen,
    /// The input of the second feed-forward matrix.
    Narrow,
}

impl Site {
    /// Every site of a layer, in the order of execution.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Widen, Self::Narrow];
}

/// How the input channels of one multiplication are prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierPlan {
    /// What each channel is divided by and its weight row multiplied by.
    smoothing: Vec<f32>,
    /// How often each channel occurs; 1 for nearly all.
    copies: Vec<u16>,
}

/// A channel is an outlier above this multiple of the median channel's largest absolute value. Measured on
/// all-MiniLM-L6-v2: less than 5 for the neurons costs a twentieth of their matrix and gains nothing.
const fn outlier_factor(site: Site) -> f32 {
    match site {
        Site::Attention | Site::Widen => 2.0,
        Site::Narrow => 5.0,
    }
}

/// Extra channels may cost at most this share of the multiplication.
const EXTRA_SHARE_MAX: usize = 16;
/// The share of a channel's size that its weights take over, as a power.
const SMOOTHING_POWER: f32 = 0.5;
/// Channels that hardly ever stir must not blow up their weights' quantisation.
const SMOOTHING_RANGE: std::ops::RangeInclusive<f32> = 0.125..=64.0;

impl OutlierPlan {
    /// The plan that changes nothing.
    pub fn identity(channels: usize) -> Self {
        Self { smoothing: vec![1.0; channels], copies: vec![1; channels] }
    }

    /// The plan of `site` for channels whose largest absolute values over the calibration texts are `peaks`.
    pub fn from_peaks(site: Site, peaks: &[f32]) -> Self {
        let median = median(peaks);
        if !(median > 0.0 && median.is_finite()) {
            return Self::identity(peaks.len());
        }
        let smoothing: Vec<f32> = peaks.iter().map(|peak| smoothing(site, peak / median)).collect();
        let peaks: Vec<f32> = peaks.iter().zip(&smoothing).map(|(p, s)| p.abs() / s).collect();
        let copies = copies(&peaks, outlier_factor(site));
        Self { smoothing, copies }
    }

    /// The source channels of the extra copies, appended after the channels themselves.
    pub fn extra(&self) -> Vec<usize> {
        let mut extra = Vec::new();
        for (channel, &copies) in self.copies.iter().enumerate() {
            extra.extend(std::iter::repeat_n(channel, usize::from(copies) - 1));
        }
        extra
    }

    /// What each channel is multiplied by before quantisation.
    pub fn factors(&self) -> Vec<f32> {
        let both = self.smoothing.iter().zip(&self.copies);
        both.map(|(smoothing, &copies)| 1.0 / (smoothing * f32::from(copies))).collect()
    }

    /// What each channel's weight row is multiplied by.
    pub fn smoothing(&self) -> &[f32] {
        &self.smoothing
    }
}

fn median(values: &[f32]) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn smoothing(site: Site, share: f32) -> f32 {
    match site {
        Site::Attention | Site::Widen => share
            .abs()
            .powf(SMOOTHING_POWER)
            .clamp(*SMOOTHING_RANGE.start(), *SMOOTHING_RANGE.end()),
        // Measured: its weights cannot take more.
        Site::Narrow => 1.0,
    }
}

/// As many copies as bring each channel near the median one, within the bound on extra channels.
fn copies(peaks: &[f32], mut factor: f32) -> Vec<u16> {
    let median = median(peaks);
    loop {
        let copies: Vec<u16> = peaks
            .iter()
            .map(|peak| (peak / (factor * median)).ceil().clamp(1.0, 64.0) as u16)
            .collect();
        let extra: usize = copies.iter().map(|&copies| usize::from(copies) - 1).sum();
        if extra <= peaks.len() / EXTRA_SHARE_MAX {
            return copies;
        }
        factor *= 1.25;
    }
}

/// A row-major `[rows, columns]` matrix in signed bytes: `value ≈ code * scale`.
pub struct QuantisedMatrix {
    /// The codes, row-major.
    pub codes: Vec<i8>,
    /// One scale a column.
    pub scales: Vec<f32>,
}

/// Ranges tried for a column: from one that never offends to the whole byte.
const RANGES: [f32; 10] = [64.0, 72.0, 80.0, 88.0, 96.0, 104.0, 112.0, 118.0, 123.0, 127.0];

/// Quantises a row-major matrix with `columns` columns.
pub fn quantise(values: &[f32], columns: usize) -> QuantisedMatrix {
    let rows = values.len() / columns;
    let mut codes = vec![0i8; values.len()];
    let mut scales = Vec::with_capacity(columns);
    let mut column = vec![0.0f32; rows];
    for at in 0..columns {
        for (row, value) in column.iter_mut().enumerate() {
            *value = values[row * columns + at];
        }
        let (scale, found) = quantise_column(&column);
        scales.push(scale);
        for (row, code) in found.into_iter().enumerate() {
            codes[row * columns + at] = code;
        }
    }
    QuantisedMatrix { codes, scales }
}

/// The scale and codes of least squared error among [`RANGES`].
fn quantise_column(column: &[f32]) -> (f32, Vec<i8>) {
    let peak = column.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
    if peak == 0.0 {
        return (1.0, vec![0; column.len()]);
    }
    let mut best = (f64::INFINITY, 1.0, Vec::new());
    for range in RANGES {
        let scale = peak / range;
        let mut codes: Vec<i8> = column
            .iter()
            .map(|value| (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8)
            .collect();
        codes.chunks_exact_mut(2).for_each(shave);
        let error = column.iter().zip(&codes).map(|(value, &code)| {
            let off = f64::from(*value) - f64::from(f32::from(code) * scale);
            off * off
        });
        let error = error.sum::<f64>();
        if error < best.0 {
            best = (error, scale, codes);
        }
    }
    (best.1, best.2)
}

/// Takes what a pair has above the bound evenly off both codes, the larger share off the first.
fn shave(pair: &mut [i8]) {
    let [a, b] = [i32::from(pair[0]), i32::from(pair[1])];
    let over = a.abs() + b.abs() - PAIR_MAX;
    if a * b > 0 && over > 0 {
        // Both are above 1 in size here, and the results lie between the old codes and zero.
        pair[0] = (a - a.signum() * ((over + 1) / 2)) as i8;
        pair[1] = (b - b.signum() * (over / 2)) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(matrix: &QuantisedMatrix) -> Vec<i32> {
        matrix.codes.iter().map(|&code| i32::from(code)).collect()
    }

    #[test]
    fn quantised_values_are_within_one_step_where_nothing_is_shaved() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0) * 0.03).collect();
        let matrix = quantise(&values, 64);
        for (at, (&value, code)) in values.iter().zip(signed(&matrix)).enumerate() {
            let back = code as f32 * matrix.scales[at];
            assert!((back - value).abs() <= matrix.scales[at], "{value} came back as {back}");
        }
    }

    #[test]
    fn no_pair_is_beyond_the_bound() {
        // The worst a column can hold: all at its peak, and mixtures of signs and sizes.
        let mut state = 9u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let random: Vec<f32> = (0..4096).map(|_| next()).collect();
        for values in [vec![1.0f32; 4096], vec![-3.0; 4096], random] {
            let matrix = quantise(&values, 8);
            let codes = signed(&matrix);
            for pair in codes.chunks_exact(16) {
                for (a, b) in pair[..8].iter().zip(&pair[8..]) {
                    let (up, down) = (a.max(&0) + b.max(&0), a.min(&0) + b.min(&0));
                    assert!(up <= PAIR_MAX && down >= -PAIR_MAX, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_wide_range_is_used_where_it_costs_little() {
        // One large weight between small ones: shaving never happens.
        let mut values = vec![0.01f32; 64];
        values[10] = 1.0;
        assert!(signed(&quantise(&values, 1))[10] > 64);
        assert_eq!(signed(&quantise(&[1.0f32; 64], 1))[10], 64);
    }

    #[test]
    fn a_zero_column_stays_zero() {
        let matrix = quantise(&[0.0, 1.0, 0.0, -1.0], 2);
        assert_eq!((matrix.codes[0], matrix.codes[2]), (0, 0));
        assert_eq!(matrix.scales[0], 1.0);
    }

    #[test]
    fn only_outliers_are_split_and_the_copies_sum_to_the_channel() {
        let mut peaks = vec![1.0f32; 100];
        peaks[7] = 12.0;
        peaks[50] = 4.9;
        let plan = OutlierPlan::from_peaks(Site::Narrow, &peaks);
        assert_eq!(plan.extra(), [7, 7], "12 / 5 rounds up to three copies");
        assert_eq!(plan.factors()[7], 1.0 / 3.0);
        assert_eq!(plan.factors()[50], 1.0);
        assert_eq!(plan.smoothing(), [1.0; 100]);
        assert!(OutlierPlan::from_peaks(Site::Narrow, &[0.0; 8]).extra().is_empty());
    }

    #[test]
    fn weights_take_over_what_the_channels_lose() {
        let mut peaks = vec![1.0f32; 100];
        peaks[3] = 16.0;
        peaks[4] = 0.0;
        let plan = OutlierPlan::from_peaks(Site::Attention, &peaks);
        assert_eq!(plan.smoothing()[3], 4.0);
        assert_eq!(plan.smoothing()[4], *SMOOTHING_RANGE.start(), "a silent channel stays finite");
        // What is left of 16 is 4: two copies of at most 2.
        assert_eq!(plan.extra(), [3]);
        assert_eq!(plan.factors()[3], 1.0 / 8.0);
        let copies = plan.extra().iter().filter(|&&channel| channel == 3).count() as f32 + 1.0;
        assert_eq!(plan.factors()[3] * plan.smoothing()[3] * copies, 1.0);
    }

    #[test]
    fn extra_channels_are_bounded() {
        let peaks: Vec<f32> = (0..160).map(|i| if i < 70 { 50.0 } else { 0.1 }).collect();
        for site in Site::ALL {
            let plan = OutlierPlan::from_peaks(site, &peaks);
            assert!(plan.extra().len() <= 10, "{} extra", plan.extra().len());
        }
    }
}
