//! One process among several: which prompts and which devices are its own.
//!
//! sdshard needs no connection between its processes. A launcher says in the environment how many there are and which
//! one this is; each takes its slice of the same list, and the union of all is what one process would have made.

use std::ops::Range;

use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind},
    error::{Error, Result},
};

/// This process's place among those that one command started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// This process, counted from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// This process among those of this machine.
    pub local_rank: usize,
    /// How many there are on this machine.
    pub local_world_size: usize,
    /// Who said so.
    pub launcher: &'static str,
}

/// The variables of one launcher. The first two are needed; `also` must be there as well, to tell a launcher's own
/// processes from a shell that merely inherits its variables.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    world_size: &'static str,
    local_rank: Option<&'static str>,
    local_world_size: Option<&'static str>,
    also: Option<&'static str>,
}

const LAUNCHERS: [Launcher; 5] = [
    Launcher {
        name: "torchrun",
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: Some("LOCAL_RANK"),
        local_world_size: Some("LOCAL_WORLD_SIZE"),
        also: Some("TORCHELASTIC_RUN_ID"),
    },
    Launcher {
        name: "accelerate",
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: Some("LOCAL_RANK"),
        local_world_size: Some("LOCAL_WORLD_SIZE"),
        also: Some("LOCAL_RANK"),
    },
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: Some("OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        also: None,
    },
    // Within a batch script these variables describe the allocation; only a step's tasks have the step's number.
    Launcher {
        name: "srun",
        rank: "SLURM_PROCID",
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: Some("SLURM_LOCALID"),
        local_world_size: None,
        also: Some("SLURM_STEP_ID"),
    },
    // A pod of its own for each index: every one is alone on its machine.
    Launcher {
        name: "Kubernetes",
        rank: "JOB_COMPLETION_INDEX",
        world_size: "WORLD_SIZE",
        local_rank: None,
        local_world_size: None,
        also: None,
    },
];

impl World {
    /// A process by itself.
    pub const ALONE: Self = Self { rank: 0, world_size: 1, local_rank: 0, local_world_size: 1, launcher: "nobody" };

    /// What the command line says, else what a launcher says in the environment, else [`World::ALONE`].
    ///
    /// # Errors
    /// If only one of rank and world size is given, or they cannot be true.
    pub fn new(
        rank: Option<usize>,
        world_size: Option<usize>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        match (rank, world_size) {
            (Some(rank), Some(world_size)) => Self {
                rank,
                world_size,
                // Nothing is known of the others; those on this machine have been given devices by whoever started them.
                local_rank: 0,
                local_world_size: 1,
                launcher: "--rank",
            }
            .checked("--rank and --world-size"),
            (None, None) => Self::from_environment(variable),
            _ => Err(Error::input("--rank and --world-size go together").hint("--rank 0 --world-size 2")),
        }
    }

    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let there = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let launcher = LAUNCHERS.iter().find(|launcher| {
            let needed = [Some(launcher.rank), Some(launcher.world_size), launcher.also];
            // accelerate and torch say "not distributed" with a local rank of -1.
            needed.into_iter().flatten().all(|name| there(name).is_some_and(|value| value.trim() != "-1"))
        });
        let Some(launcher) = launcher else { return Ok(Self::ALONE) };
        let number = |name: &str| match there(name).map(|value| value.trim().parse::<usize>()) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(Error::input(format!("{} set {name} to something that is no number", launcher.name))
                .found(there(name).unwrap_or_default())),
        };
        let optional = |name: Option<&str>| name.map_or(Ok(None), &number);
        let rank = number(launcher.rank)?.unwrap_or(0);
        let world_size = number(launcher.world_size)?.unwrap_or(1);
        let local_rank = optional(launcher.local_rank)?.unwrap_or(0);
        let local_world_size = match optional(launcher.local_world_size)? {
            Some(size) => size,
            // srun gives the numbers of all nodes, "2(x3),1": the first is as good as any where they are equal.
            None if launcher.name == "srun" => there("SLURM_STEP_TASKS_PER_NODE")
                .and_then(|list| list.split(['(', ',']).next()?.parse().ok())
                .unwrap_or(world_size)
                .max(local_rank + 1),
            None => 1,
        };
        Self { rank, world_size, local_rank, local_world_size, launcher: launcher.name }.checked(launcher.name)
    }

    fn checked(self, who: &str) -> Result<Self> {
        if self.rank < self.world_size && self.local_rank < self.local_world_size {
            return Ok(self);
        }
        Err(Error::input(format!("{who}: a rank is counted from 0 and lower than the number of processes")).found(
            format!(
                "rank {} of {}, local rank {} of {}",
                self.rank, self.world_size, self.local_rank, self.local_world_size
            ),
        ))
    }

    /// The part of a list of `count` that is this process's: contiguous, sizes differing by at most one, the larger
    /// ones first, as accelerate's `split_between_processes`.
    pub fn slice(&self, count: usize) -> Range<usize> {
        share(count, self.rank, self.world_size)
    }

    /// This process's part of `devices` of which it needs `need`: the local rank's own group if there are enough for
    /// all processes of this machine, else the first group, which they share.
    ///
    /// # Errors
    /// If there are fewer than one process needs.
    pub fn devices<'a, T>(&self, devices: &'a [T], need: usize) -> Result<&'a [T]> {
        if devices.len() >= need * self.local_world_size {
            return Ok(&devices[share(devices.len(), self.local_rank, self.local_world_size)]);
        }
        if devices.len() >= need {
            return Ok(&devices[..need]);
        }
        Err(Error::input(format!("rank {} needs {need} devices", self.rank))
            .found(format!("{} on this machine, for {} processes", devices.len(), self.local_world_size))
            .hint("fewer processes, or a device map for fewer devices"))
    }

    /// What this process sees of the machine's devices: its own group of GPUs; the CPU, of which it has a share of the cores
    /// already; and what is used only where a map names it.
    ///
    /// # Errors
    /// As [`World::devices`].
    pub fn own_devices(&self, visible: &[DeviceInfo]) -> Result<Vec<DeviceInfo>> {
        let is_dealt = |info: &&DeviceInfo| info.id.kind != DeviceKind::Cpu && !info.only_named;
        let dealt: Vec<DeviceId> = visible.iter().filter(is_dealt).map(|info| info.id).collect();
        let own = if dealt.is_empty() { &[][..] } else { self.devices(&dealt, 1)? };
        Ok(visible.iter().filter(|info| !is_dealt(info) || own.contains(&info.id)).cloned().collect())
    }
}

/// Share `index` of `count` things dealt into `shares`: contiguous, the larger ones first.
pub(super) fn share(count: usize, index: usize, shares: usize) -> Range<usize> {
    let (size, larger) = (count / shares, count % shares);
    let start = |index: usize| index * size + index.min(larger);
    start(index)..start(index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &[(&str, &str)]) -> Result<World> {
        World::new(None, None, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    fn rank(rank: usize, world_size: usize) -> World {
        World { rank, world_size, local_rank: rank, local_world_size: world_size, launcher: "test" }
    }

    #[test]
    fn slices_are_those_of_split_between_processes() {
        for (count, world_size, sizes) in [
            (3, 2, &[2, 1][..]),
            (5, 4, &[2, 1, 1, 1]),
            (2, 4, &[1, 1, 0, 0]),
            (17, 8, &[3, 2, 2, 2, 2, 2, 2, 2]),
            (0, 3, &[0, 0, 0]),
        ] {
            let slices: Vec<_> = (0..world_size).map(|r| rank(r, world_size).slice(count)).collect();
            assert_eq!(slices.iter().map(Range::len).collect::<Vec<_>>(), sizes);
            assert_eq!(slices.into_iter().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>(), "each once");
        }
    }

    #[test]
    fn every_launcher_is_understood() {
        let torch = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
        let torchrun = [&torch[..], &[("TORCHELASTIC_RUN_ID", "x")]].concat();
        for (variables, launcher, numbers) in [
            (&torchrun[..], "torchrun", (3, 4, 1, 2)),
            (&torch[..], "accelerate", (3, 4, 1, 2)),
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "1"),
                    ("OMPI_COMM_WORLD_SIZE", "3"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "3"),
                ],
                "Open MPI",
                (1, 3, 1, 3),
            ),
            (
                &[
                    ("SLURM_PROCID", "5"),
                    ("SLURM_STEP_NUM_TASKS", "6"),
                    ("SLURM_STEP_ID", "0"),
                    ("SLURM_LOCALID", "1"),
                    ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
                ],
                "srun",
                (5, 6, 1, 2),
            ),
            (&[("JOB_COMPLETION_INDEX", "2"), ("WORLD_SIZE", "3")], "Kubernetes", (2, 3, 0, 1)),
        ] {
            let world = world(variables).unwrap();
            assert_eq!(world.launcher, launcher);
            assert_eq!((world.rank, world.world_size, world.local_rank, world.local_world_size), numbers, "{launcher}");
        }
    }

    #[test]
    fn what_no_launcher_means_is_one_process() {
        for variables in [
            &[][..],
            &[("RANK", "1")],
            &[("WORLD_SIZE", "4")],
            // Inside a batch script, outside a step.
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")],
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "-1")],
        ] {
            assert_eq!(world(variables).unwrap(), World::ALONE, "{variables:?}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let message = world(&[("RANK", "4"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")]).unwrap_err().to_string();
        assert!(message.contains("rank 4 of 4"), "{message}");
        let message = world(&[("OMPI_COMM_WORLD_RANK", "x"), ("OMPI_COMM_WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(message.contains("OMPI_COMM_WORLD_RANK") && message.contains("found: x"), "{message}");
        for (rank, size) in [(Some(2), Some(2)), (Some(0), Some(0)), (Some(0), None), (None, Some(2))] {
            assert_eq!(World::new(rank, size, |_| None).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn devices_are_dealt_to_local_ranks_or_shared() {
        let devices = ["a", "b", "c", "d"];
        assert_eq!(rank(1, 2).devices(&devices, 2).unwrap(), ["c", "d"]);
        assert_eq!(rank(2, 3).devices(&devices, 1).unwrap(), ["d"]);
        assert_eq!(rank(1, 3).devices(&devices, 2).unwrap(), ["a", "b"], "shared");
        assert!(rank(0, 2).devices(&devices, 5).unwrap_err().to_string().contains("needs 5 devices"));
    }
}
