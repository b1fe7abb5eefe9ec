//! The adapter of one module, read from its tensors.

use std::collections::BTreeSet;

use super::{keys::Part, matrix::Matrix, scale::scale};
use crate::error::{Error, Result};

/// The tensors of one module, read as f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What is added.
    pub kind: Kind,
    /// The factor of the product: alpha divided by the rank.
    pub scale: f32,
    /// The magnitudes of a DoRA.
    pub dora: Option<Dora>,
}

/// The kinds of adapters.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields have the names of the tensors")]
pub enum Kind {
    /// `up · down`, with `mid` between them for a convolution in Tucker form.
    Lora { down: Matrix, up: Matrix, mid: Option<Matrix>, up_bias: Option<Matrix> },
    /// `(w1_a · w1_b) ∘ (w2_a · w2_b)`, each with a core in Tucker form.
    Loha { w1_a: Matrix, w1_b: Matrix, w2_a: Matrix, w2_b: Matrix, cores: Option<[Matrix; 2]> },
    /// The Kronecker product of two factors.
    Lokr { w1: Factor, w2: Factor },
    /// A factor for each input or output of the weight.
    Ia3 { weight: Matrix, on_input: bool },
    /// Differences of the weight and the bias; also those of a norm.
    Full { weight: Option<Matrix>, bias: Option<Matrix> },
}

/// A factor of a Kronecker product.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    /// The factor itself.
    Whole(Matrix),
    /// The product of two, with a core between them for a convolution in Tucker form.
    Product(Matrix, Matrix, Option<Matrix>),
}

/// The magnitudes of the rows or columns of a changed weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Dora {
    /// The magnitudes, one for each output or each input.
    pub magnitude: Matrix,
    /// The rule for strengths other than 1.
    pub rule: DoraRule,
}

/// What a strength other than 1 means for a DoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoraRule {
    /// The change of the weight at strength 1 is multiplied by it, as in web UIs: files with `dora_scale`.
    Blend,
    /// The product is multiplied by it before the weight is normalised, as in PEFT: files with
    /// `lora_magnitude_vector`.
    Peft,
}

/// The tensors of a module that were not used yet.
pub(super) struct Parts<F> {
    pub(super) left: BTreeSet<Part>,
    pub(super) read: F,
}

impl<F: Fn(Part) -> Result<Matrix>> Parts<F> {
    fn has(&self, part: Part) -> bool {
        self.left.contains(&part)
    }

    fn take(&mut self, part: Part) -> Result<Option<Matrix>> {
        if self.left.remove(&part) { (self.read)(part).map(Some) } else { Ok(None) }
    }

    fn need(&mut self, part: Part) -> Result<Matrix> {
        self.take(part)?.ok_or_else(|| Error::input(format!("`{}` is missing", part.suffix())))
    }

    /// One of two tensors.
    fn either(&mut self, one: Part, other: Part) -> Result<Option<Matrix>> {
        if self.has(one) { self.take(one) } else { self.take(other) }
    }

    fn number(&mut self, part: Part) -> Result<Option<f32>> {
        Ok(self.take(part)?.and_then(|matrix| matrix.values.first().copied()))
    }

    fn factor(&mut self, [whole, a, b]: [Part; 3], core: Option<Part>) -> Result<Factor> {
        if let Some(matrix) = self.take(whole)? {
            return Ok(Factor::Whole(matrix));
        }
        let core = core.map_or(Ok(None), |core| self.take(core))?;
        Ok(Factor::Product(self.need(a)?, self.need(b)?, core))
    }
}

impl Adapter {
    /// From the tensors that a module has. `peft` gives the factor for a rank if no tensor has it.
    pub(super) fn of(mut parts: Parts<impl Fn(Part) -> Result<Matrix>>, peft: impl Fn(usize) -> f32) -> Result<Self> {
        let (kind, rank) = if parts.has(Part::Down) || parts.has(Part::Up) {
            let (down, up) = (parts.need(Part::Down)?, parts.need(Part::Up)?);
            let rank = down.rows();
            (Kind::Lora { down, up, mid: parts.take(Part::Mid)?, up_bias: parts.take(Part::UpBias)? }, Some(rank))
        } else if parts.has(Part::HadaW1A) {
            let (w1_a, w1_b) = (parts.need(Part::HadaW1A)?, parts.need(Part::HadaW1B)?);
            let (w2_a, w2_b) = (parts.need(Part::HadaW2A)?, parts.need(Part::HadaW2B)?);
            let cores = match parts.has(Part::HadaT1) || parts.has(Part::HadaT2) {
                true => Some([parts.need(Part::HadaT1)?, parts.need(Part::HadaT2)?]),
                false => None,
            };
            let rank = w1_b.rows();
            (Kind::Loha { w1_a, w1_b, w2_a, w2_b, cores }, Some(rank))
        } else if parts.has(Part::LokrW1) || parts.has(Part::LokrW1A) {
            let w1 = parts.factor([Part::LokrW1, Part::LokrW1A, Part::LokrW1B], None)?;
            let w2 = parts.factor([Part::LokrW2, Part::LokrW2A, Part::LokrW2B], Some(Part::LokrT2))?;
            let rank = match (&w1, &w2) {
                (_, Factor::Product(_, b, _)) | (Factor::Product(_, b, _), _) => Some(b.rows()),
                _ => None,
            };
            (Kind::Lokr { w1, w2 }, rank)
        } else if parts.has(Part::Weight) {
            let on_input = parts.number(Part::OnInput)?.is_some_and(|flag| flag != 0.0);
            (Kind::Ia3 { weight: parts.need(Part::Weight)?, on_input }, None)
        } else {
            let (weight, bias) = (parts.either(Part::Diff, Part::WNorm)?, parts.either(Part::DiffB, Part::BNorm)?);
            if weight.is_none() && bias.is_none() {
                return Err(Error::input("there is nothing that changes a weight"));
            }
            (Kind::Full { weight, bias }, None)
        };
        let scale = scale(parts.number(Part::Alpha)?, parts.number(Part::Scale)?, rank, peft);
        let dora = match (parts.take(Part::DoraScale)?, parts.take(Part::Magnitude)?) {
            (Some(magnitude), _) => Some(Dora { magnitude, rule: DoraRule::Blend }),
            (None, Some(magnitude)) => Some(Dora { magnitude, rule: DoraRule::Peft }),
            (None, None) => None,
        };
        match parts.left.first() {
            Some(part) => Err(Error::input(format!("`{}` is of another kind of adapter", part.suffix()))),
            None => Ok(Self { kind, scale, dora }),
        }
    }
}
