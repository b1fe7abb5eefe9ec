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

/// The variables of one launcher. Where several names are listed, the first that is set counts.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    world_size: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_world_size: &'static [&'static str],
    /// A variable that the launcher's own processes have, and a shell that merely inherits the others does not.
    only_with: Option<&'static str>,
}

/// The launchers, with those first that are started inside the others: torchrun by mpirun or srun on each node, mpirun
/// in a step of srun. Whatever else a person or a cluster puts around them may have left `RANK` and `WORLD_SIZE`.
const LAUNCHERS: [Launcher; 8] = [
    // https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables; accelerate launch starts it too.
    Launcher {
        name: "torchrun",
        rank: "RANK",
        world_size: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_world_size: &["LOCAL_WORLD_SIZE"],
        only_with: Some("TORCHELASTIC_RUN_ID"),
    },
    // https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_world_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
        only_with: None,
    },
    // The user guide of MVAPICH2, "Running with mpirun_rsh".
    Launcher {
        name: "MVAPICH2",
        rank: "MV2_COMM_WORLD_RANK",
        world_size: &["MV2_COMM_WORLD_SIZE"],
        local_rank: &["MV2_COMM_WORLD_LOCAL_RANK"],
        local_world_size: &["MV2_COMM_WORLD_LOCAL_SIZE"],
        only_with: None,
    },
    // The launcher of HPE Cray systems. Not every version has a size of its own; then the one of Cray's PMI is there.
    Launcher {
        name: "PALS",
        rank: "PALS_RANKID",
        world_size: &["PALS_SIZE", "PMI_SIZE"],
        local_rank: &["PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"],
        local_world_size: &["PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"],
        only_with: None,
    },
    // Hydra, the mpiexec of MPICH, Intel MPI and MVAPICH 3; srun --mpi=pmi2 sets the rank and the size as well.
    Launcher {
        name: "MPICH or Intel MPI",
        rank: "PMI_RANK",
        world_size: &["PMI_SIZE"],
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
        local_world_size: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
        only_with: None,
    },
    // https://slurm.schedmd.com/srun.html. Within a batch script these variables describe the allocation; only a step's
    // tasks have the step's number.
    Launcher {
        name: "srun",
        rank: "SLURM_PROCID",
        world_size: &["SLURM_STEP_NUM_TASKS"],
        local_rank: &["SLURM_LOCALID"],
        local_world_size: &["SLURM_STEP_TASKS_PER_NODE"],
        only_with: Some("SLURM_STEP_ID"),
    },
    // Kubeflow's PyTorchJob, cloud services, scripts: https://docs.pytorch.org/docs/stable/distributed.html.
    Launcher {
        name: "RANK and WORLD_SIZE",
        rank: "RANK",
        world_size: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_world_size: &["LOCAL_WORLD_SIZE"],
        only_with: None,
    },
    // A Job whose completion mode is Indexed. Each index has a pod of its own.
    Launcher {
        name: "Kubernetes",
        rank: "JOB_COMPLETION_INDEX",
        world_size: &["WORLD_SIZE"],
        local_rank: &[],
        local_world_size: &[],
        only_with: None,
    },
];

/// What one launcher's variables say.
struct Said {
    launcher: &'static Launcher,
    rank: usize,
    world_size: usize,
    local_rank: Option<usize>,
    local_world_size: Option<usize>,
}

impl Said {
    /// What `launcher` says, if the process is one of several that it started; an error if that is incomplete.
    fn by(launcher: &'static Launcher, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        // accelerate and torch say "not distributed" with a rank of -1.
        let there = |name: &str| {
            variable(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty() && value != "-1")
        };
        let number = |names: &[&'static str]| -> Result<Option<usize>> {
            let Some((name, value)) = names.iter().find_map(|name| Some((*name, there(name)?))) else {
                return Ok(None);
            };
            // srun lists all nodes, "2(x3),1": the largest is enough for each.
            let numbers = value.split(',').map(|part| part.split('(').next().unwrap_or(part).parse::<usize>());
            let largest = numbers.reduce(|a, b| Ok(a?.max(b?))).and_then(|number| number.ok());
            if largest.is_none() {
                let message = format!("{} set {name} to something that is no number", launcher.name);
                return Err(Error::input(message).found(value));
            }
            Ok(largest)
        };
        if launcher.only_with.is_some_and(|name| there(name).is_none()) {
            return Ok(None);
        }
        let (rank, world_size) = (number(&[launcher.rank])?, number(launcher.world_size)?);
        match (rank, world_size) {
            (Some(rank), Some(world_size)) => {
                let local_rank = number(launcher.local_rank)?;
                let local_world_size = number(launcher.local_world_size)?;
                Ok(Some(Self { launcher, rank, world_size, local_rank, local_world_size }))
            }
            (None, None | Some(1)) => Ok(None),
            // Other launchers have the same variable.
            (None, Some(_)) if launcher.rank != "RANK" => Ok(None),
            (rank, _) => {
                let (set, other) = match rank {
                    Some(_) => (launcher.rank, launcher.world_size[0]),
                    None => (launcher.world_size[0], launcher.rank),
                };
                Err(Error::input(format!("{set} is set, {other} is not: which of the prompts are this process's?"))
                    .hint(format!("set {other} as well, unset {set}, or say --rank and --world-size")))
            }
        }
    }

    /// Nodes that it works on, at least; unequal ones count as more.
    fn nodes(&self) -> usize {
        self.world_size.div_ceil(self.local_world_size.unwrap_or(self.world_size).max(1))
    }

    /// Whether both may be true of this process: they speak of the same processes, or `outer` started no more than one
    /// process on each node of this one.
    fn may_be_inside(&self, outer: &Self) -> bool {
        (self.rank, self.world_size) == (outer.rank, outer.world_size) || outer.world_size <= self.nodes()
    }
}

impl World {
    /// A process by itself.
    pub const ALONE: Self = Self { rank: 0, world_size: 1, local_rank: 0, local_world_size: 1, launcher: "nobody" };

    /// What the command line says, else what a launcher says in the environment, else [`World::ALONE`].
    ///
    /// # Errors
    /// If only one of rank and world size is given, they cannot be true, or two launchers contradict each other:
    /// several processes that each take themselves for the only one would all draw everything.
    pub fn new(
        rank: Option<usize>,
        world_size: Option<usize>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        match (rank, world_size) {
            (Some(rank), Some(world_size)) => Self {
                rank,
                world_size,
                // Nothing is known of the others; those on this machine have been given devices by whoever started
                // them.
                local_rank: 0,
                local_world_size: 1,
                launcher: "--rank",
            }
            .checked("--rank and --world-size"),
            (None, None) => Self::from_environment(&variable),
            _ => Err(Error::input("--rank and --world-size go together").hint("--rank 0 --world-size 2")),
        }
    }

    fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut found: Vec<Said> = Vec::new();
        let mut incomplete = None;
        for launcher in &LAUNCHERS {
            let is_new =
                |said: &Said| said.launcher.rank != launcher.rank && said.launcher.world_size != launcher.world_size;
            if found.iter().all(is_new) {
                match Said::by(launcher, variable) {
                    Ok(said) => found.extend(said),
                    Err(error) => incomplete = incomplete.or(Some(error)),
                }
            }
        }
        let Some(inner) = found.first() else { return incomplete.map_or(Ok(Self::ALONE), Err) };
        if let Some(outer) = found.iter().find(|outer| !inner.may_be_inside(outer)) {
            let says = |said: &Said| format!("{} says rank {} of {}", said.launcher.name, said.rank, said.world_size);
            return Err(Error::input("two launchers contradict each other: which of the prompts are this process's?")
                .found(format!("{}, {}", says(inner), says(outer)))
                .hint(format!(
                    "unset {} if it is left from something else, or say --rank and --world-size",
                    outer.launcher.rank
                )));
        }
        // srun's tasks have their local rank from srun, whatever library of MPI they are for.
        let same = |said: &&Said| (said.rank, said.world_size) == (inner.rank, inner.world_size);
        let local = found.iter().filter(same).find(|said| said.local_rank.is_some()).unwrap_or(inner);
        let local_rank = local.local_rank.unwrap_or(0);
        // Who counts the processes of a machine and does not say how many there are may have started all of them here.
        let most = if local.local_rank.is_some() { inner.world_size } else { 1 };
        let local_world_size = local.local_world_size.unwrap_or(most);
        let launcher = inner.launcher.name;
        Self { rank: inner.rank, world_size: inner.world_size, local_rank, local_world_size, launcher }
            .checked(launcher)
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
    /// all processes of this machine, else one of as many groups as there are, which several share.
    ///
    /// # Errors
    /// If there are fewer than one process needs.
    pub fn devices<'a, T>(&self, devices: &'a [T], need: usize) -> Result<&'a [T]> {
        if devices.len() >= need * self.local_world_size {
            return Ok(&devices[share(devices.len(), self.local_rank, self.local_world_size)]);
        }
        if devices.len() >= need.max(1) {
            let groups = devices.len() / need.max(1);
            return Ok(&devices[share(devices.len(), self.local_rank % groups, groups)]);
        }
        Err(Error::input(format!("rank {} needs {need} devices", self.rank))
            .found(format!("{} on this machine, for {} processes", devices.len(), self.local_world_size))
            .hint("fewer processes, or a device map for fewer devices"))
    }

    /// What this process sees of the machine's devices: its own group of GPUs; the CPU, of which it has a share of the
    /// cores already; and what is used only where a map names it.
    ///
    /// # Errors
    /// As [`World::devices`].
    pub fn own_devices(&self, visible: &[DeviceInfo]) -> Result<Vec<DeviceInfo>> {
        let is_dealt = |info: &&DeviceInfo| info.id.kind != DeviceKind::Cpu && !info.only_named;
        let shared: Vec<DeviceId> = visible.iter().filter(is_dealt).map(|info| info.id).collect();
        let own = if shared.is_empty() { &[][..] } else { self.devices(&shared, 1)? };
        Ok(visible.iter().filter(|info| !is_dealt(info) || own.contains(&info.id)).cloned().collect())
    }
}

/// Share `index` of `count` things that are split into `shares`: contiguous, the larger shares first.
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
            (&torch[..], "RANK and WORLD_SIZE", (3, 4, 1, 2)),
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
    fn a_launcher_that_leaves_something_out_is_understood() {
        for (variables, launcher, numbers) in [
            // Set by hand, or by a cloud's launcher: nobody but torchrun has LOCAL_WORLD_SIZE.
            (&[("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")][..], "RANK and WORLD_SIZE", (1, 2, 1, 2)),
            (&[("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")], "RANK and WORLD_SIZE", (9, 16, 1, 16)),
            // A pod of Kubeflow's PyTorchJob.
            (&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a-0")], "RANK and WORLD_SIZE", (1, 2, 0, 1)),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "-1")], "RANK and WORLD_SIZE", (0, 2, 0, 1)),
            (
                &[("PMI_RANK", "1"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")],
                "MPICH or Intel MPI",
                (1, 4, 1, 2),
            ),
            (&[("PMI_RANK", "1"), ("PMI_SIZE", "4")], "MPICH or Intel MPI", (1, 4, 0, 1)),
            (
                &[
                    ("MV2_COMM_WORLD_RANK", "3"),
                    ("MV2_COMM_WORLD_SIZE", "4"),
                    ("MV2_COMM_WORLD_LOCAL_RANK", "1"),
                    ("MV2_COMM_WORLD_LOCAL_SIZE", "2"),
                ],
                "MVAPICH2",
                (3, 4, 1, 2),
            ),
            (
                &[
                    ("PALS_RANKID", "5"),
                    ("PALS_LOCAL_RANKID", "1"),
                    ("PALS_LOCAL_SIZE", "4"),
                    ("PMI_RANK", "5"),
                    ("PMI_SIZE", "8"),
                ],
                "PALS",
                (5, 8, 1, 4),
            ),
            // srun --mpi=pmi2: the place on the machine is srun's.
            (
                &[
                    ("PMI_RANK", "3"),
                    ("PMI_SIZE", "4"),
                    ("SLURM_PROCID", "3"),
                    ("SLURM_STEP_NUM_TASKS", "4"),
                    ("SLURM_STEP_ID", "0"),
                    ("SLURM_LOCALID", "1"),
                    ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
                ],
                "MPICH or Intel MPI",
                (3, 4, 1, 2),
            ),
            (
                &[
                    ("SLURM_PROCID", "3"),
                    ("SLURM_STEP_NUM_TASKS", "4"),
                    ("SLURM_STEP_ID", "0"),
                    ("SLURM_LOCALID", "2"),
                    ("SLURM_STEP_TASKS_PER_NODE", "1,3"),
                ],
                "srun",
                (3, 4, 2, 3),
            ),
        ] {
            let world = world(variables).unwrap();
            assert_eq!(world.launcher, launcher);
            let found = (world.rank, world.world_size, world.local_rank, world.local_world_size);
            assert_eq!(found, numbers, "{variables:?}");
        }
    }

    /// What srun sets for one of its tasks.
    fn srun(task: &'static str, tasks: &'static str) -> [(&'static str, &'static str); 3] {
        [("SLURM_PROCID", task), ("SLURM_STEP_NUM_TASKS", tasks), ("SLURM_STEP_ID", "0")]
    }

    /// What torchrun sets for a process of two on a node.
    fn torchrun(rank: &'static str, processes: &'static str) -> [(&'static str, &'static str); 5] {
        [
            ("RANK", rank),
            ("WORLD_SIZE", processes),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("TORCHELASTIC_RUN_ID", "x"),
        ]
    }

    /// What Open MPI sets for a process of two on a node.
    fn open_mpi(rank: &'static str, processes: &'static str) -> [(&'static str, &'static str); 4] {
        [
            ("OMPI_COMM_WORLD_RANK", rank),
            ("OMPI_COMM_WORLD_SIZE", processes),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ]
    }

    #[test]
    fn the_inner_of_two_launchers_counts_where_both_can_be_true() {
        let of_two = [("RANK", "1"), ("WORLD_SIZE", "2")];
        let alone = [("RANK", "0"), ("WORLD_SIZE", "1")];
        for (inner, outer, numbers) in [
            // torchrun and mpirun on each of two nodes.
            (&torchrun("3", "4")[..], &srun("1", "2")[..], (3, 4)),
            (&torchrun("3", "4"), &srun("0", "1"), (3, 4)),
            (&torchrun("3", "4"), &open_mpi("1", "2"), (3, 4)),
            (&open_mpi("3", "4"), &srun("1", "2"), (3, 4)),
            (&open_mpi("3", "4"), &of_two, (3, 4)),
            // Left in the shell.
            (&open_mpi("3", "4"), &alone, (3, 4)),
            (&srun("1", "2"), &alone, (1, 2)),
            (&open_mpi("3", "4"), &[("RANK", "7")], (3, 4)),
            // A script has copied srun's.
            (&srun("1", "2"), &of_two, (1, 2)),
        ] {
            let world = world(&[inner, outer].concat()).unwrap();
            assert_eq!((world.rank, world.world_size), numbers, "{inner:?} {outer:?}");
        }
    }

    #[test]
    fn what_cannot_be_decided_is_an_error() {
        for (inner, outer, words) in [
            // Each task of srun starts a torchrun of its own.
            (&torchrun("1", "2")[..], &srun("3", "4")[..], "torchrun says rank 1 of 2, srun says rank 3 of 4"),
            (&torchrun("1", "2"), &open_mpi("3", "4"), "contradict"),
            (&open_mpi("0", "1"), &srun("1", "2"), "contradict"),
            (&open_mpi("1", "2"), &[("RANK", "3"), ("WORLD_SIZE", "8")], "unset RANK"),
            (&srun("0", "2"), &[("RANK", "1"), ("WORLD_SIZE", "2")], "contradict"),
            (&[], &[("RANK", "1")], "RANK is set, WORLD_SIZE is not"),
            (&[], &[("WORLD_SIZE", "4")], "WORLD_SIZE is set, RANK is not"),
            (&[], &[("PMI_RANK", "0")], "PMI_RANK is set, PMI_SIZE is not"),
            (&[], &[("PALS_RANKID", "0")], "PALS_RANKID is set, PALS_SIZE is not"),
            (&[], &[("JOB_COMPLETION_INDEX", "2")], "JOB_COMPLETION_INDEX is set, WORLD_SIZE is not"),
        ] {
            let error = world(&[inner, outer].concat()).unwrap_err();
            assert!(error.to_string().contains(words) && error.exit_code() == 2, "{error}");
        }
    }

    #[test]
    fn variables_that_no_launcher_sets_mean_one_process() {
        for variables in [
            &[][..],
            &[("RANK", "-1"), ("WORLD_SIZE", "1")],
            &[("WORLD_SIZE", "1")],
            // Inside a batch script, outside a step.
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")],
        ] {
            assert_eq!(world(variables).unwrap(), World::ALONE, "{variables:?}");
        }
    }

    #[test]
    fn impossible_ranks_and_sizes_are_rejected() {
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
        assert_eq!(rank(1, 3).devices(&devices, 2).unwrap(), ["c", "d"], "shared");
        assert_eq!(rank(2, 3).devices(&devices, 2).unwrap(), ["a", "b"], "shared");
        assert_eq!(rank(9, 16).devices(&devices, 1).unwrap(), ["b"], "shared");
        assert!(rank(0, 2).devices(&devices, 5).unwrap_err().to_string().contains("needs 5 devices"));
    }
}
