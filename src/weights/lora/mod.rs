//! LoRA files and their relatives: which tensors change which module, and by how much. Hu et al. 2021; LyCORIS for LoHa,
//! LoKr, IA3 and differences; Liu et al. 2024 for DoRA.
//!
//! Three questions are answered by themselves: how a file names modules ([`Modules`]), which kind of adapter a module has
//! ([`Adapter`]), and what it adds to a weight ([`Adapter::difference`]).

mod adapter;
mod apply;
mod choice;
mod file;
mod keys;
mod matrix;
mod merge;
mod modules;
mod scale;

pub use self::{
    adapter::{Adapter, Dora, DoraRule, Factor, Kind},
    apply::{Adapters, Changeable},
    choice::LoraChoice,
    file::{Change, LoraFile},
    matrix::Matrix,
    merge::Difference,
    modules::{Modules, Target},
};
