//! What an adapter adds to a weight: `W + Σ strength · difference`, each from the original `W`, so in any order.
//!
//! All is f32. Each sum runs in the order of its index, so that the bits do not depend on anything else.

use super::{
    adapter::{Adapter, Dora, DoraRule, Factor, Kind},
    matrix::{Matrix, product, tucker},
};
use crate::error::{Error, Result};

/// What is added to a module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Difference {
    /// For the weight, in its shape.
    pub weight: Option<Vec<f32>>,
    /// For the bias.
    pub bias: Option<Vec<f32>>,
}

fn times(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

fn scaled(values: &[f32], factor: f32) -> Vec<f32> {
    values.iter().map(|x| x * factor).collect()
}

impl Adapter {
    /// What this adapter adds at `strength` to a module with these values: the weight, `[out, in, ...]` or `[channels]`,
    /// and the bias if the module has one.
    ///
    /// # Errors
    /// If shapes do not fit, or if the adapter changes a bias that the module does not have.
    pub fn difference(
        &self,
        weight: &[f32],
        shape: &[usize],
        bias: Option<&[f32]>,
        strength: f32,
    ) -> Result<Difference> {
        let own_bias = |bias: Option<&[f32]>, wanted: usize| match bias {
            Some(bias) if bias.len() == wanted => Ok(bias.to_vec()),
            found => Err(Error::input(format!("a bias of {wanted} values is needed in the model"))
                .found(found.map_or("no bias".to_owned(), |bias| format!("{} values", bias.len())))),
        };
        if self.dora.is_some() && !matches!(self.kind, Kind::Lora { .. } | Kind::Loha { .. } | Kind::Lokr { .. }) {
            return Err(Error::input("magnitudes without a product that they belong to"));
        }
        Ok(match &self.kind {
            Kind::Full { weight: difference, bias: bias_difference } => {
                let difference = difference.as_ref().map(|difference| {
                    check_shape(&difference.values, &difference.shape, shape)?;
                    Ok::<_, Error>(scaled(&difference.values, strength))
                });
                let bias = bias_difference.as_ref().map(|difference| {
                    own_bias(bias, difference.values.len())?;
                    Ok::<_, Error>(scaled(&difference.values, strength))
                });
                Difference { weight: difference.transpose()?, bias: bias.transpose()? }
            }
            Kind::Ia3 { weight: factors, on_input } => {
                let count = factors.values.len();
                let wanted = if *on_input { shape.get(1) } else { shape.first() };
                if wanted != Some(&count) {
                    return Err(not_for(shape).found(format!("{count} factors")));
                }
                let columns = weight.len() / shape[0];
                let taps = if *on_input { columns / count } else { columns };
                let index = |i: usize| if *on_input { i % columns / taps } else { i / columns };
                let changed = |(i, x): (usize, &f32)| x * (factors.values[index(i)] * strength);
                let bias = bias.filter(|_| !on_input).map(|bias| times(bias, &scaled(&factors.values, strength)));
                Difference { weight: Some(weight.iter().enumerate().map(changed).collect()), bias }
            }
            Kind::Lora { .. } | Kind::Loha { .. } | Kind::Lokr { .. } => {
                let product = self.product(shape)?;
                let difference = match &self.dora {
                    None => scaled(&product, self.scale * strength),
                    Some(dora) => dora.difference(weight, shape, &product, self.scale, strength)?,
                };
                let bias = match &self.kind {
                    Kind::Lora { up_bias: Some(difference), .. } => {
                        own_bias(bias, difference.values.len())?;
                        Some(scaled(&difference.values, self.scale * strength))
                    }
                    _ => None,
                };
                Difference { weight: Some(difference), bias }
            }
        })
    }

    /// The product of the factors, without scale, in the shape of a weight.
    fn product(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let [out, inputs, ..] = *shape else { return Err(not_for(shape).found("a product")) };
        let taps: usize = shape[2..].iter().product();
        let matrix = match &self.kind {
            Kind::Lora { down, up, mid: Some(mid), .. } => tucker(up, mid, down)?,
            Kind::Lora { down, up, mid: None, .. } => {
                let kernel: usize = down.shape.iter().skip(2).product();
                if kernel != taps {
                    return Err(not_for(shape).found(format!("{:?} and {:?}", up.shape, down.shape)));
                }
                product(up, down)?
            }
            Kind::Loha { w1_a, w1_b, w2_a, w2_b, cores } => {
                let (one, two) = match cores {
                    None => (product(w1_a, w1_b)?, product(w2_a, w2_b)?),
                    Some([t1, t2]) => (tucker(&w1_a.transposed(), t1, w1_b)?, tucker(&w2_a.transposed(), t2, w2_b)?),
                };
                check_shape(&two.values, &two.shape, &one.shape)?;
                Matrix { values: times(&one.values, &two.values), shape: one.shape }
            }
            Kind::Lokr { w1, w2 } => kronecker(&w1.matrix()?, &w2.matrix()?, taps)?,
            Kind::Ia3 { .. } | Kind::Full { .. } => return Err(not_for(shape)),
        };
        // The first convolution of an inpainting model has five more inputs than the file, which nothing is added to.
        if inputs == 9 && matrix.rows() == out && matrix.columns() == 4 * taps {
            let mut padded = vec![0.0; out * 9 * taps];
            let rows = padded.chunks_exact_mut(9 * taps).zip(matrix.values.chunks_exact(4 * taps));
            rows.for_each(|(to, from)| to[..4 * taps].copy_from_slice(from));
            return Ok(padded);
        }
        check_shape(&matrix.values, &matrix.shape, &[out, inputs * taps])?;
        Ok(matrix.values)
    }
}

/// Fails unless a difference has the shape of a weight; sizes of 1 at the end do not count.
fn check_shape(values: &[f32], own: &[usize], shape: &[usize]) -> Result<()> {
    let trimmed = |shape: &[usize]| {
        let length = shape.iter().rposition(|size| *size != 1).map_or(0, |last| last + 1);
        shape[..length].to_vec()
    };
    match values.len() == shape.iter().product::<usize>() && trimmed(own) == trimmed(shape) {
        true => Ok(()),
        false => Err(not_for(shape).found(format!("{own:?}"))),
    }
}

fn not_for(shape: &[usize]) -> Error {
    Error::input(format!("the adapter is not for a weight of {shape:?}"))
}

impl Factor {
    fn matrix(&self) -> Result<Matrix> {
        match self {
            Self::Whole(matrix) => Ok(matrix.clone()),
            Self::Product(a, b, None) => product(a, b),
            Self::Product(a, b, Some(core)) => tucker(&a.transposed(), core, b),
        }
    }
}

/// The Kronecker product of `[a, b]` and `[c, d, taps]`: `[a · c, b · d · taps]`.
fn kronecker(one: &Matrix, two: &Matrix, taps: usize) -> Result<Matrix> {
    let ([a, b], [c, d]) = ([one.rows(), one.columns()], [two.rows(), two.columns() / taps]);
    if d * taps != two.columns() {
        return Err(Error::input(format!("a factor has no kernel of {taps} values")).found(format!("{:?}", two.shape)));
    }
    let mut values = Vec::with_capacity(one.values.len() * two.values.len());
    for p in 0..a {
        for u in 0..c {
            for q in 0..b {
                let factor = one.values[p * b + q];
                values.extend(two.values[u * d * taps..][..d * taps].iter().map(|x| factor * x));
            }
        }
    }
    Ok(Matrix { shape: vec![a * c, b * d * taps], values })
}

impl Dora {
    /// `V · magnitude / ‖V‖ - W` with `V = W + scale · product`, where the norm is over all but the axis of the
    /// magnitudes.
    fn difference(
        &self,
        weight: &[f32],
        shape: &[usize],
        product: &[f32],
        scale: f32,
        strength: f32,
    ) -> Result<Vec<f32>> {
        let (out, inputs) = (shape[0], shape[1]);
        let columns = weight.len() / out;
        let taps = columns / inputs;
        let magnitudes = &self.magnitude.values;
        let is_column = self.magnitude.shape.first() == Some(&1) && self.rule == DoraRule::Blend && out != 1;
        if magnitudes.len() != if is_column { inputs } else { out } {
            return Err(not_for(shape).found(format!("magnitudes {:?}", self.magnitude.shape)));
        }
        let axis = |i: usize| if is_column { i % columns / taps } else { i / columns };
        let (scale, epsilon) = match self.rule {
            DoraRule::Blend => (scale, f32::EPSILON),
            DoraRule::Peft => (scale * strength, 0.0),
        };
        let v: Vec<f32> = weight.iter().zip(product).map(|(w, p)| w + scale * p).collect();
        let mut squares = vec![0.0_f64; magnitudes.len()];
        v.iter().enumerate().for_each(|(i, x)| squares[axis(i)] += f64::from(*x) * f64::from(*x));
        let factors = magnitudes.iter().zip(squares).map(|(magnitude, squares)| {
            let norm = squares.sqrt() as f32 + epsilon;
            // Where the norm is zero, so is all that would be multiplied.
            if norm == 0.0 { 0.0 } else { magnitude / norm }
        });
        let factors: Vec<f32> = factors.collect();
        let strength = if self.rule == DoraRule::Blend { strength } else { 1.0 };
        let changed = v.iter().zip(weight).enumerate().map(|(i, (v, w))| strength * (v * factors[axis(i)] - w));
        Ok(changed.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(shape: &[usize], values: &[f32]) -> Matrix {
        Matrix { shape: shape.to_vec(), values: values.to_vec() }
    }

    fn adapter(kind: Kind, scale: f32) -> Adapter {
        Adapter { kind, scale, dora: None }
    }

    fn lora(up: Matrix, down: Matrix) -> Kind {
        Kind::Lora { down, up, mid: None, up_bias: None }
    }

    fn weight(adapter: &Adapter, weight: &[f32], shape: &[usize], strength: f32) -> Vec<f32> {
        adapter.difference(weight, shape, None, strength).unwrap().weight.unwrap()
    }

    fn close(got: &[f32], want: &[f32]) {
        assert!(
            got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6),
            "{got:?}, not {want:?}"
        );
    }

    #[test]
    fn the_tiny_check_numbers() {
        let adapter_of = |kind| adapter(kind, 1.0);
        let small = adapter(lora(m(&[2, 1], &[1.0, 2.0]), m(&[1, 2], &[3.0, 4.0])), 0.5);
        close(&weight(&small, &[0.0; 4], &[2, 2], 0.8), &[1.2, 1.6, 2.4, 3.2]);
        // A linear adapter on a convolution of one tap, and the reverse.
        close(&weight(&small, &[0.0; 4], &[2, 2, 1, 1], 0.8), &[1.2, 1.6, 2.4, 3.2]);
        let conv = adapter(lora(m(&[2, 1, 1, 1], &[1.0, 2.0]), m(&[1, 2, 1, 1], &[3.0, 4.0])), 0.5);
        close(&weight(&conv, &[0.0; 4], &[2, 2], 0.8), &[1.2, 1.6, 2.4, 3.2]);
        let (w1, w2) = (Factor::Whole(m(&[1, 2], &[1.0, 2.0])), Factor::Whole(m(&[2, 1], &[1.0, 10.0])));
        close(&weight(&adapter_of(Kind::Lokr { w1, w2 }), &[0.0; 4], &[2, 2], 1.0), &[1.0, 2.0, 10.0, 20.0]);
        let one = || m(&[1, 1], &[1.0]);
        let loha = Kind::Loha {
            w1_a: one(),
            w1_b: m(&[1, 2], &[1.0, 2.0]),
            w2_a: one(),
            w2_b: m(&[1, 2], &[3.0, 4.0]),
            cores: None,
        };
        close(&weight(&adapter_of(loha), &[0.0; 2], &[1, 2], 1.0), &[3.0, 8.0]);
    }

    #[test]
    fn factors_and_differences() {
        let w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let ia3 = |values: &[f32], on_input| adapter(Kind::Ia3 { weight: m(&[values.len()], values), on_input }, 1.0);
        close(&weight(&ia3(&[1.0, 10.0, 0.0], true), &w, &[2, 3], 0.5), &[0.5, 10.0, 0.0, 2.0, 25.0, 0.0]);
        let rows = ia3(&[1.0, -1.0], false).difference(&w, &[2, 3], Some(&[8.0, 4.0]), 0.5).unwrap();
        close(&rows.weight.unwrap(), &[0.5, 1.0, 1.5, -2.0, -2.5, -3.0]);
        close(&rows.bias.unwrap(), &[4.0, -2.0]);
        // A convolution of two taps.
        close(&weight(&ia3(&[1.0, 0.0], true), &w[..4], &[1, 2, 1, 2], 1.0), &[1.0, 2.0, 0.0, 0.0]);
        let full = Kind::Full { weight: Some(m(&[2], &[1.0, 2.0])), bias: Some(m(&[2], &[3.0, 4.0])) };
        let norm = adapter(full, 1.0).difference(&w[..2], &[2], Some(&[0.0; 2]), -2.0).unwrap();
        assert_eq!((norm.weight.unwrap(), norm.bias.unwrap()), (vec![-2.0, -4.0], vec![-6.0, -8.0]));
        let lora = Kind::Lora {
            down: m(&[1, 1], &[1.0]),
            up: m(&[2, 1], &[1.0, 2.0]),
            mid: None,
            up_bias: Some(m(&[2], &[1.0, -1.0])),
        };
        let with_bias = adapter(lora, 0.5).difference(&[0.0; 2], &[2, 1], Some(&[0.0; 2]), 3.0).unwrap();
        assert_eq!((with_bias.weight.unwrap(), with_bias.bias.unwrap()), (vec![1.5, 3.0], vec![1.5, -1.5]));
    }

    #[test]
    fn the_extra_inputs_of_an_inpainting_model_stay_as_they_are() {
        let conv = adapter(lora(m(&[1, 1], &[2.0]), m(&[1, 4, 1, 1], &[1.0, 2.0, 3.0, 4.0])), 1.0);
        let got = weight(&conv, &[0.0; 9], &[1, 9, 1, 1], 1.0);
        assert_eq!(got, [2.0, 4.0, 6.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_dora_at_strength_zero_half_and_one() {
        let w = [3.0, 4.0, 0.0, 2.0];
        let with = |shape: &[usize], rule| Adapter {
            kind: lora(m(&[2, 1], &[1.0, 0.0]), m(&[1, 2], &[3.0, 4.0])),
            scale: 1.0,
            dora: Some(Dora { magnitude: m(shape, &[5.0, 4.0]), rule }),
        };
        // V is [[6, 8], [0, 2]]. Rows have the norms 10 and 2, columns 6 and sqrt(68).
        let rows = with(&[2, 1], DoraRule::Blend);
        close(&weight(&rows, &w, &[2, 2], 1.0), &[0.0, 0.0, 0.0, 2.0]);
        close(&weight(&rows, &w, &[2, 2], 0.5), &[0.0, 0.0, 0.0, 1.0]);
        assert_eq!(weight(&rows, &w, &[2, 2], 0.0), [0.0; 4]);
        let root = 68.0_f32.sqrt();
        let columns = with(&[1, 2], DoraRule::Blend);
        close(&weight(&columns, &w, &[2, 2], 1.0), &[2.0, 32.0 / root - 4.0, 0.0, 8.0 / root - 2.0]);
        let peft = with(&[2], DoraRule::Peft);
        close(&weight(&peft, &w, &[2, 2], 1.0), &[0.0, 0.0, 0.0, 2.0]);
        // At strength 0.5 V is [[4.5, 6], [0, 2]], whose first row has the norm 7.5.
        close(&weight(&peft, &w, &[2, 2], 0.5), &[0.0, 0.0, 0.0, 2.0]);
        close(&weight(&with(&[1, 2, 1, 1], DoraRule::Peft), &w, &[2, 2, 1, 1], 1.0), &[0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let refuse = |adapter: Adapter, shape: &[usize]| {
            let weight = vec![0.0; shape.iter().product()];
            adapter.difference(&weight, shape, None, 1.0).unwrap_err().to_string()
        };
        let down = |shape: &[usize]| m(shape, &vec![1.0; shape.iter().product()]);
        for (kind, shape, says) in [
            (lora(down(&[2, 1]), down(&[1, 3])), &[2, 2][..], "not for a weight of [2, 2]\n  found: [2, 3]"),
            (
                lora(down(&[2, 2]), down(&[1, 2])),
                &[2, 2],
                "two factors do not fit together\n  found: [2, 2] and [1, 2]",
            ),
            (lora(down(&[2, 1]), down(&[1, 2, 3, 3])), &[2, 18], "not for a weight of [2, 18]"),
            (lora(down(&[2, 1]), down(&[1, 2])), &[4], "not for a weight of [4]"),
            (Kind::Full { weight: Some(down(&[3])), bias: None }, &[4], "found: [3]"),
            (Kind::Full { weight: None, bias: Some(down(&[3])) }, &[3], "a bias of 3 values is needed in the model"),
            (Kind::Ia3 { weight: down(&[3]), on_input: true }, &[3, 2], "found: 3 factors"),
            (Kind::Ia3 { weight: down(&[2]), on_input: true }, &[2], "found: 2 factors"),
            (
                Kind::Lokr { w1: Factor::Whole(down(&[1, 1])), w2: Factor::Whole(down(&[2, 2])) },
                &[2, 2, 3, 3],
                "no kernel of 9 values",
            ),
        ] {
            let error = refuse(adapter(kind, 1.0), shape);
            assert!(error.contains(says), "{error}");
        }
        let dora = Some(Dora { magnitude: down(&[3]), rule: DoraRule::Blend });
        let error = refuse(Adapter { kind: lora(down(&[2, 1]), down(&[1, 2])), scale: 1.0, dora }, &[2, 2]);
        assert!(error.contains("magnitudes [3]"), "{error}");
    }
}
