//! Ops with one fault: what the checks are for.

use sdshard::{
    backend::{Device, Weight},
    error::Result,
    tensor::{Shape, Tensor},
};

use super::cases::{Case, Data, Op};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing.
    Sound,
    /// A product of one row adds up the two halves of k apart: as good a sum, in another order.
    OneRowInHalves,
    /// The last element is not written.
    MissingElement,
    /// One element is written beyond the last.
    StrayElement,
}

impl Fault {
    /// Runs a case as a device with this fault would. What replaces the result takes its place in the arena, which
    /// finds the same room for the same size.
    pub fn run(self, device: &Device, case: &Case, data: &Data, x: &[Tensor], weights: &[Weight]) -> Result<Tensor> {
        let run = || case.op.run(device, x, weights, &data.ids);
        let Op::Linear { x: [_, rows, _], out, .. } = case.op else { return run() };
        let shape = Shape::from([data.tensors[0].dim(0), rows, out]);
        let before = Tensor::uninitialized(device, shape)?.read()?;
        let mut values = run()?.read()?;
        match self {
            Fault::OneRowInHalves if shape.rows() == 1 => {
                let (x, weight) = (&data.tensors[0].values, &data.weights[0].weight);
                let half = x.len() / 2;
                for (row, value) in weight.chunks_exact(x.len()).zip(&mut values) {
                    let sum = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0, |sum, (x, w)| sum + x * w);
                    *value = sum(&x[..half], &row[..half]) + sum(&x[half..], &row[half..]);
                }
            }
            Fault::MissingElement => *values.last_mut().unwrap() = *before.last().unwrap(),
            // The cases' outputs end before a multiple of the arena's alignment: one element more has the same room.
            Fault::StrayElement => {
                values.push(1.0);
                Tensor::new(device, [values.len()], &values)?;
                return Tensor::uninitialized(device, shape);
            }
            Fault::OneRowInHalves | Fault::Sound => return run(),
        }
        Tensor::new(device, shape, &values)
    }
}
