//! The quantiles of a symmetric beta distribution.

/// Both parameters of the distribution, as in Lee et al. 2024.
const SHAPE: f64 = 0.6;

/// The value below which a share `p` (0 to 1) of Beta(0.6, 0.6) lies: the inverse of the regularized incomplete beta
/// function.
pub(super) fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - quantile(1.0 - p);
    }
    // Half of the distribution lies below 1/2, so the share below x is integral(x) / integral(1/2) / 2.
    let wanted = 2.0 * p * integral(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return low;
        }
        if integral(middle) < wanted { low = middle } else { high = middle }
    }
}

/// The integral of t^(a-1) (1-t)^(a-1) from 0 to `x`, at most 1/2: the binomial series of (1-t)^(a-1), term by term.
fn integral(x: f64) -> f64 {
    let (mut sum, mut coefficient, mut n) = (0.0, 1.0, 0.0);
    loop {
        let term = coefficient / (SHAPE + n);
        if sum + term == sum {
            return sum * x.powf(SHAPE);
        }
        sum += term;
        n += 1.0;
        coefficient *= x * (n - SHAPE) / n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        // scipy 1.17.1: scipy.stats.beta.ppf(p, 0.6, 0.6)
        for (p, want) in [
            (0.0, 0.0),
            (1e-6, 1.8558824624053043e-10),
            (0.001, 1.855873851745199e-05),
            (0.05263157894736842, 0.013671081564469266),
            (0.1, 0.03958440558878085),
            (0.3333333333333333, 0.2754132907776234),
            (0.5, 0.5),
            (0.6666666666666666, 0.7245867092223766),
            (0.9, 0.9604155944112192),
            (0.999, 0.9999814412614826),
            (1.0, 1.0),
        ] {
            assert!((quantile(p) - want).abs() <= 1e-12 * want, "{p}: {} rather than {want}", quantile(p));
        }
    }
}
