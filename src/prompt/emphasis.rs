//! Where the weights of a prompt act: on the features of the text encoder.

use super::Chunk;

/// The result of [`emphasize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emphasis {
    /// Every chunk has the mean that it had before.
    MeanKept,
    /// The mean of a chunk came so near to zero that it could not be restored: that chunk has its weights alone.
    MeanLost,
}

/// Multiplies the features of each token by its weight, then all features of a chunk by one factor, so that the chunk
/// has the mean that it had before: the "Original" emphasis of AUTOMATIC1111's web UI, its default.
///
/// `features` are `[chunks, tokens, width]`, after clip skip and final norm. With two text encoders each has its own
/// means: call this for each before they are joined. Pooled features have no weights. Chunks whose weights are all 1
/// are not changed.
///
/// Means are sums in f64 in index order, and each feature is rounded once.
pub fn emphasize(features: &mut [f32], chunks: &[Chunk]) -> Emphasis {
    let mut emphasis = Emphasis::MeanKept;
    for (features, chunk) in features.chunks_exact_mut(features.len() / chunks.len().max(1)).zip(chunks) {
        if chunk.weights.iter().any(|weight| *weight != 1.0) && !emphasize_chunk(features, &chunk.weights) {
            emphasis = Emphasis::MeanLost;
        }
    }
    emphasis
}

/// One chunk, `[tokens, width]`; false if its mean could not be restored.
fn emphasize_chunk(features: &mut [f32], weights: &[f32]) -> bool {
    /// The mean, relative to the largest value, below which dividing by it would only amplify rounding errors.
    const LEAST_MEAN: f64 = 1e-6;
    let width = features.len() / weights.len();
    let weighted = |features: &[f32]| -> Vec<f64> {
        let rows = features.chunks_exact(width).zip(weights);
        rows.flat_map(|(row, weight)| row.iter().map(|x| f64::from(*x) * f64::from(*weight))).collect()
    };
    let mean = |sum: f64| sum / (weights.len() * width) as f64;
    let before = mean(features.iter().map(|x| f64::from(*x)).sum());
    let weighted = weighted(features);
    let after = mean(weighted.iter().sum());
    let largest = weighted.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let is_kept = after.abs() > LEAST_MEAN * largest;
    let factor = if is_kept { before / after } else { 1.0 };
    features.iter_mut().zip(weighted).for_each(|(to, x)| *to = (x * factor) as f32);
    is_kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(weights: &[f32]) -> Chunk {
        Chunk { ids: vec![0; weights.len()], weights: weights.to_vec(), end: None }
    }

    #[test]
    fn the_mean_of_a_chunk_is_restored() {
        // 77 rows of width 2 with mean 0.02, one of them with mean 0.05 and weight 1.3.
        let mut weights = vec![1.0; 77];
        weights[5] = 1.3;
        let other = (77.0 * 0.02 - 0.05) / 76.0;
        let row = |i: usize| if i == 5 { [0.04_f32, 0.06] } else { [other - 1.0, other + 1.0] };
        let before: Vec<f32> = (0..77).flat_map(row).collect();
        let mut features = before.clone();
        assert_eq!(emphasize(&mut features, &[chunk(&weights)]), Emphasis::MeanKept);
        let factor = 0.02 / (0.02 + 0.3 * 0.05 / 77.0);
        assert!((factor - 0.99035_f64).abs() < 1e-5);
        for (i, (got, was)) in features.iter().zip(&before).enumerate() {
            let want = f64::from(*was) * factor * if i / 2 == 5 { 1.3 } else { 1.0 };
            assert!((f64::from(*got) - want).abs() < 1e-6, "{i}: {got}, not {want}");
        }
        let mean = features.iter().map(|x| f64::from(*x)).sum::<f64>() / 154.0;
        assert!((mean - 0.02).abs() < 1e-7, "{mean}");
    }

    #[test]
    fn each_chunk_has_its_own_mean_and_one_without_weights_keeps_its_bits() {
        let mut features = vec![1.0, 3.0, 0.1, 0.7, 2.0, 2.0, 1.0, 1.0];
        let chunks = [chunk(&[1.0, 1.0]), chunk(&[2.0, 1.0])];
        assert_eq!(emphasize(&mut features, &chunks), Emphasis::MeanKept);
        let factor = 1.5 / 2.5;
        let want = [1.0, 3.0, 0.1, 0.7, 4.0 * factor, 4.0 * factor, factor, factor];
        assert_eq!(features, want.map(|x| x as f32));
    }

    #[test]
    fn a_mean_near_zero_is_not_divided_by() {
        let mut features = vec![1.0, 1.0];
        assert_eq!(emphasize(&mut features, &[chunk(&[1.0, -1.0])]), Emphasis::MeanLost);
        assert_eq!(features, [1.0, -1.0]);
        let mut zeros = vec![0.0; 4];
        assert_eq!(emphasize(&mut zeros, &[chunk(&[1.0, 0.0])]), Emphasis::MeanLost);
        assert_eq!(zeros, [0.0; 4]);
    }
}
