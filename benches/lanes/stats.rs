//! Medians, spread, ratios.

use serde_json::{Value, json};

/// The value below which a share of the samples lies. Sorts them.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The middle of the samples.
pub fn median(samples: &[f64]) -> f64 {
    quantile(&mut samples.to_vec(), 0.5)
}

/// Median, 5th and 95th percentile.
pub fn spread(samples: &[f64]) -> [f64; 3] {
    let mut sorted = samples.to_vec();
    [0.5, 0.05, 0.95].map(|share| quantile(&mut sorted, share))
}

/// Median and spread of `rounds`, and the ratio to `base`, both measured in the same rounds.
///
/// The median is that of the rounds' medians; the spread is that of all samples. The ratio is taken within each round,
/// where both sides met the same machine, and then is the median of these.
pub fn summary(rounds: &[Vec<f64>], base: &[f64]) -> Value {
    let medians: Vec<f64> = rounds.iter().map(|round| median(round)).collect();
    let ratios: Vec<f64> = medians.iter().zip(base).map(|(own, base)| own / base).collect();
    let all = rounds.concat();
    let [_, p5, p95] = spread(&all);
    let [ratio, ratio_p5, ratio_p95] = spread(&ratios);
    json!({
        "median": median(&medians), "p5": p5, "p95": p95,
        "ratio": ratio, "ratio_p5": ratio_p5, "ratio_p95": ratio_p95,
        "rounds": rounds.len(), "samples": all.len(),
    })
}
