//! Prediction of times: a simulation of the engine's queue and devices on a simulated clock.
//!
//! One queue serves all replicas, oldest request first. A replica has several requests in flight. Each request passes
//! the replica's stations in order, one station for each component, and uses one instance of each station. An instance
//! is a list of tasks. A request holds all devices of a task, or waits without holding any. The rule of
//! [`DeviceQueue`], which the engine uses too, decides which request gets devices next. Of several events at the same
//! instant, that of the older request comes first; but texts ask for devices first.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

use super::tuning::Tuning;
use crate::pipeline::device_queue::{Admission, DeviceQueue, Outcome, Work};

/// Work for which a request holds some devices together.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Each device, with the seconds for which it computes.
    pub busy_seconds: Vec<(usize, f64)>,
    /// The seconds for which all of these devices are held.
    pub seconds: f64,
}

impl Task {
    /// A task that keeps one device busy all the time.
    pub fn on(device: usize, seconds: f64) -> Self {
        Self { busy_seconds: vec![(device, seconds)], seconds }
    }
}

/// One instance of a component.
#[derive(Debug, Clone, PartialEq)]
pub struct StationInstance {
    /// Tasks that a request passes once, before all others. May be empty. An instance is free if the devices of its
    /// first task, here or in `tasks`, are free.
    pub first: Vec<Task>,
    /// Tasks that a request passes in order.
    pub tasks: Vec<Task>,
    /// The number of times that a request passes `tasks`: the steps of a cut UNet, or the pictures of a batch that are
    /// encoded or decoded one by one.
    pub repetitions: usize,
    /// Tasks that a request passes once, after all others.
    pub last: Vec<Task>,
}

impl StationInstance {
    /// An instance with a single task.
    pub fn once(task: Task) -> Self {
        Self::repeated(vec![task], 1)
    }

    /// An instance with a list of tasks that is repeated.
    pub fn repeated(tasks: Vec<Task>, repetitions: usize) -> Self {
        Self { first: Vec::new(), tasks, repetitions, last: Vec::new() }
    }

    /// The number of tasks that a request passes, with repetitions.
    fn task_count(&self) -> usize {
        self.first.len() + self.repetitions * self.tasks.len() + self.last.len()
    }

    /// All tasks, each once.
    fn each_task(&self) -> impl Iterator<Item = &Task> {
        self.first.iter().chain(&self.tasks).chain(&self.last)
    }

    /// The index in [`each_task`](Self::each_task) of the task that follows `passed` others.
    fn task_index(&self, passed: usize) -> usize {
        let (first, once) = (self.first.len(), self.tasks.len());
        let repeated = self.repetitions * once;
        match passed {
            _ if passed < first => passed,
            _ if passed < first + repeated => first + (passed - first) % once,
            _ => passed - repeated + once,
        }
    }

    /// All tasks, each with the number of times that a request passes it.
    fn with_repetitions(&self) -> impl Iterator<Item = (&Task, f64)> {
        let repeated = self.tasks.iter().map(|task| (task, self.repetitions as f64));
        self.first.iter().chain(&self.last).map(|task| (task, 1.0)).chain(repeated)
    }

    /// All tasks, mutable.
    fn tasks_mut(&mut self) -> impl Iterator<Item = &mut Task> {
        self.first.iter_mut().chain(&mut self.tasks).chain(&mut self.last)
    }

    /// The seconds that a request spends here if it never waits.
    pub fn seconds(&self) -> f64 {
        self.with_repetitions().map(|(task, repetitions)| repetitions * task.seconds).sum()
    }
}

/// A component of the model: a station of a queueing network.
#[derive(Debug, Clone, PartialEq)]
pub struct Station {
    /// The kind of work, which the queue needs to know.
    pub work: Work,
    /// The instances that can do the work, the preferred one first.
    pub instances: Vec<StationInstance>,
}

/// One replica as the prediction sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaLoad {
    /// The stations in the order in which requests pass them.
    pub stations: Vec<Station>,
    /// The number of requests in flight.
    pub in_flight: usize,
}

/// The input of a prediction: replicas on devices, which are numbered from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The number of devices.
    pub devices: usize,
    /// The replicas, which share one queue.
    pub replicas: Vec<ReplicaLoad>,
    /// Whether the first request passes the text stations twice, because it encodes the negative prompt for all.
    pub first_texts_twice: bool,
    /// The number of images in one request: a batch counts as one request. If replicas have different batches, the
    /// smallest.
    pub batch: usize,
}

/// Simulated time in picoseconds. Integers make simultaneous events exactly equal, however their times were added up.
type Ticks = u128;

const TICKS_PER_SECOND: f64 = 1e12;

/// The result of a simulation of several requests. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulatedRun {
    /// The time at which each request was finished, in the order of the queue.
    pub done: Vec<f64>,
    /// The time at which each request was taken, in the order of the queue.
    pub taken: Vec<f64>,
    /// The work of each device, in the order of time.
    pub spans: Vec<PredictedSpan>,
    /// The work of the simulation, in steps, at most: the sum, over all instants, of the requests in flight and of the
    /// instances at the stations where requests wait.
    pub steps: u64,
}

/// The part of a task on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictedSpan {
    /// The index of the device.
    pub device: usize,
    /// The index of the request in the queue.
    pub request: usize,
    /// The index of the station in the replica.
    pub station: usize,
    /// The start, in seconds.
    pub from: f64,
    /// The seconds for which the device computes.
    pub seconds: f64,
    /// The seconds for which the device is held, together with the other devices of the task.
    pub held: f64,
}

/// The predicted rate and times of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The seconds of one request alone; with batches, of a whole batch.
    pub seconds_per_image: f64,
    /// Images per second while the queue is never empty.
    pub images_per_second: f64,
    /// The share of time in which each device is idle while the queue is never empty.
    pub idle_share: Vec<f64>,
    /// The steps of the simulation: see [`SimulatedRun::steps`].
    pub steps: u64,
}

impl PredictedSpan {
    /// The busy seconds of this span inside `time`.
    fn inside(&self, time: &Range<f64>) -> f64 {
        ((self.from + self.seconds).min(time.end) - self.from.max(time.start)).max(0.0)
    }
}

impl SimulatedRun {
    /// The seconds from the start to the end of the last request.
    pub fn makespan(&self) -> f64 {
        self.done.iter().copied().fold(0.0, f64::max)
    }

    /// The seconds for which each of `devices` is busy during `time`.
    pub fn busy(&self, devices: usize, time: Range<f64>) -> Vec<f64> {
        let mut busy = vec![0.0; devices];
        for span in &self.spans {
            busy[span.device] += span.inside(&time);
        }
        busy
    }
}

/// The state of a request that was taken.
struct RequestState {
    replica: usize,
    station: usize,
    /// The index of the instance that the request uses; valid from the time when it gets the devices of its first task
    /// there.
    instance: usize,
    /// The number of finished tasks at this instance, with repetitions.
    passed: usize,
    /// The number of further passes through the text stations.
    text_passes_left: usize,
}

/// The devices of a station in the form that the queue takes.
struct StationDevices<'a> {
    /// The devices of the first task of each instance: a request takes one of these sets.
    first_devices: Vec<Vec<usize>>,
    /// The tasks of each instance, and the devices of each task.
    instances: Vec<(Vec<&'a Task>, Vec<Vec<usize>>)>,
}

impl<'a> StationDevices<'a> {
    fn new(station: &'a Station) -> Self {
        let devices = |task: &&Task| task.busy_seconds.iter().map(|(device, _)| *device).collect::<Vec<_>>();
        let instance = |instance: &'a StationInstance| {
            let tasks: Vec<&Task> = instance.each_task().collect();
            let sets = tasks.iter().map(devices).collect();
            (tasks, sets)
        };
        let instances = &station.instances;
        let first_devices =
            instances.iter().filter_map(|instance| instance.each_task().next()).map(|task| devices(&task));
        Self { first_devices: first_devices.collect(), instances: instances.iter().map(instance).collect() }
    }
}

/// The state of a simulation.
struct Simulation<'a> {
    load: &'a Load,
    /// The devices by replica and station.
    sets: &'a [Vec<StationDevices<'a>>],
    now: Ticks,
    /// All requests that were taken, the oldest first.
    requests: Vec<RequestState>,
    in_flight_count: usize,
    /// The requests that ask for devices at this instant.
    asking: Vec<usize>,
    queue: DeviceQueue<&'a [Vec<usize>]>,
    /// The number of instances at the stations where requests wait.
    waiting_instances: usize,
    completions: BinaryHeap<Reverse<(Ticks, usize)>>,
    run: SimulatedRun,
}

impl Load {
    /// Simulates `count` requests that all wait from the start.
    pub fn run(&self, count: usize) -> SimulatedRun {
        let stations = self.replicas.iter().map(|replica| replica.stations.iter());
        let sets: Vec<Vec<StationDevices>> =
            stations.map(|stations| stations.map(StationDevices::new).collect()).collect();
        let run = SimulatedRun { done: vec![0.0; count], taken: vec![0.0; count], spans: Vec::new(), steps: 0 };
        let mut simulation = Simulation {
            load: self,
            sets: &sets,
            now: 0,
            requests: Vec::with_capacity(count),
            in_flight_count: 0,
            asking: Vec::new(),
            queue: DeviceQueue::new(self.devices),
            waiting_instances: 0,
            completions: BinaryHeap::new(),
            run,
        };
        let mut free: Vec<usize> = self.replicas.iter().map(|replica| replica.in_flight).collect();
        let mut next = 0;
        loop {
            while next < count
                && let Some(replica) = self.least_loaded_replica(&free)
            {
                free[replica] -= 1;
                simulation.start_request(next, replica, self.first_texts_twice && next == 0);
                next += 1;
            }
            simulation.grant_devices();
            let Some(done) = simulation.advance() else { return simulation.run };
            for replica in done {
                free[replica] += 1;
            }
        }
    }

    /// The replica with the fewest requests in flight, of those that can take one more.
    fn least_loaded_replica(&self, free: &[usize]) -> Option<usize> {
        let open = (0..free.len()).filter(|&replica| free[replica] > 0);
        open.min_by_key(|&replica| self.replicas[replica].in_flight - free[replica])
    }

    /// Removes the devices that are not `used`, and renumbers the others.
    pub fn keep_devices(&mut self, used: &[bool]) {
        let number: Vec<usize> = (0..used.len()).map(|i| used[..i].iter().filter(|used| **used).count()).collect();
        self.devices = used.iter().filter(|used| **used).count();
        let stations = self.replicas.iter_mut().flat_map(|replica| &mut replica.stations);
        for task in stations.flat_map(|station| &mut station.instances).flat_map(StationInstance::tasks_mut) {
            task.busy_seconds.iter_mut().for_each(|(device, _)| *device = number[*device]);
        }
    }

    /// The number of requests in flight, over all replicas.
    pub fn in_flight(&self) -> usize {
        self.replicas.iter().map(|replica| replica.in_flight).sum()
    }

    /// The seconds for `images` that are all requested at the start. Beyond a few hundred requests, the time is
    /// extrapolated with the rate of the simulated ones.
    pub fn seconds_for(&self, images: usize) -> f64 {
        let count = images.div_ceil(self.batch);
        let max_simulated = Tuning::PREDICTED_REQUESTS.max(Tuning::MAX_SIMULATED_ROUNDS * self.in_flight());
        if count <= max_simulated {
            return self.run(count).makespan();
        }
        let run = self.run(max_simulated);
        run.makespan() + (count - max_simulated) as f64 / self.steady_rate(&run).0
    }

    /// The requests per second in the steady part of a run, and that part: from the end of the requests of the
    /// warm-up rounds to the time when the last request is taken. A request counts with the share of its work that is
    /// done in this part.
    fn steady_rate(&self, run: &SimulatedRun) -> (f64, Range<f64>) {
        let mut done = run.done.clone();
        done.sort_by(f64::total_cmp);
        let from = done[(Tuning::WARM_UP_ROUNDS * self.in_flight()).min(done.len()) - 1];
        let to = run.taken.iter().copied().fold(0.0, f64::max);
        if to <= from {
            return (done.len() as f64 / run.makespan(), 0.0..run.makespan());
        }
        let mut work = vec![0.0; done.len()];
        for span in &run.spans {
            work[span.request] += span.seconds;
        }
        let share_inside = |span: &PredictedSpan| span.inside(&(from..to)) / work[span.request].max(f64::MIN_POSITIVE);
        (run.spans.iter().map(share_inside).sum::<f64>() / (to - from), from..to)
    }

    /// Predicts rate and times by a simulation of at least `samples` requests.
    pub fn predict(&self, samples: usize) -> Prediction {
        let alone = Self { first_texts_twice: false, ..self.clone() };
        let seconds_per_image = alone.run(1).makespan();
        let round = self.in_flight().max(1);
        let run = alone.run(samples.div_ceil(round).max(Tuning::MIN_ROUNDS) * round);
        let (images_per_second, time) = self.steady_rate(&run);
        let seconds = time.end - time.start;
        let images_per_second = self.batch as f64 * images_per_second;
        let idle = |busy: f64| if seconds > 0.0 { (1.0 - busy / seconds).clamp(0.0, 1.0) } else { 0.0 };
        let idle_share = run.busy(self.devices, time).into_iter().map(idle).collect();
        Prediction { seconds_per_image, images_per_second, idle_share, steps: run.steps }
    }

    /// An upper bound of the requests per second: the sum over the replicas. A replica is no faster than its slowest
    /// station, whose rate is the sum of its instances' rates, nor than a device that every request needs for some
    /// time.
    pub fn max_requests_per_second(&self) -> f64 {
        let of_replica = |replica: &ReplicaLoad| {
            let held = |station: &Station| {
                station.instances.iter().map(|instance| self.held_seconds(instance)).collect::<Vec<_>>()
            };
            let stations: Vec<Vec<Vec<f64>>> = replica.stations.iter().map(held).collect();
            // An instance cannot finish requests faster than its busiest device.
            let station = |station: &Vec<Vec<f64>>| {
                station.iter().map(|held| 1.0 / held.iter().copied().fold(0.0, f64::max)).sum::<f64>()
            };
            // The minimum time that every request needs on a device, whichever instances it uses.
            let device = |device: usize| {
                let least =
                    |station: &Vec<Vec<f64>>| station.iter().map(|held| held[device]).fold(f64::INFINITY, f64::min);
                1.0 / stations.iter().map(least).sum::<f64>()
            };
            stations.iter().map(station).chain((0..self.devices).map(device)).fold(f64::INFINITY, f64::min)
        };
        self.replicas.iter().map(of_replica).sum()
    }

    /// The seconds for which one request holds each device at an instance.
    fn held_seconds(&self, instance: &StationInstance) -> Vec<f64> {
        let mut held = vec![0.0; self.devices];
        for (task, repetitions) in instance.with_repetitions() {
            for (device, _) in &task.busy_seconds {
                held[*device] += repetitions * task.seconds;
            }
        }
        held
    }
}

impl<'a> Simulation<'a> {
    fn seconds(&self) -> f64 {
        self.now as f64 / TICKS_PER_SECOND
    }

    /// Lets a replica take a request. Requests are taken in the order of their arrival.
    fn start_request(&mut self, id: usize, replica: usize, encodes_two_texts: bool) {
        self.run.taken[id] = self.seconds();
        self.requests.push(RequestState {
            replica,
            station: 0,
            instance: 0,
            passed: 0,
            text_passes_left: usize::from(encodes_two_texts),
        });
        self.in_flight_count += 1;
        self.asking.push(id);
    }

    /// The current or next task of a request, and its index.
    fn task(&self, request: &RequestState) -> (&'a Task, usize) {
        let number = self.load.replicas[request.replica].stations[request.station].instances[request.instance]
            .task_index(request.passed);
        (self.sets[request.replica][request.station].instances[request.instance].0[number], number)
    }

    /// The kind of work that a request asks for.
    fn work_of(&self, id: usize) -> Work {
        let request = &self.requests[id];
        self.load.replicas[request.replica].stations[request.station].work
    }

    /// Puts a request into the queue. After its first task at an instance, it stays with that instance.
    fn request_devices(&mut self, id: usize) {
        let request = &self.requests[id];
        let station = &self.sets[request.replica][request.station];
        let sets = match request.passed {
            0 => &station.first_devices[..],
            _ => std::slice::from_ref(&station.instances[request.instance].1[self.task(request).1]),
        };
        self.waiting_instances += station.first_devices.len();
        self.queue.ask(id as u64, self.work_of(id), sets);
    }

    /// Gives free devices to the requests that wait for them.
    fn grant_devices(&mut self) {
        // Texts ask first, because other requests of the same instant may have to wait behind them.
        let mut asking = std::mem::take(&mut self.asking);
        asking.sort_by_key(|&id| !self.work_of(id).is_for_denoiser());
        asking.drain(..).for_each(|id| self.request_devices(id));
        self.asking = asking;
        self.run.steps += (self.in_flight_count + self.waiting_instances) as u64;
        let from = self.seconds();
        for Admission { arrival, outcome, .. } in self.queue.admit() {
            let Outcome::Granted(set) = outcome else { unreachable!("no device of a prediction is lost") };
            let id = arrival as usize;
            let request = &mut self.requests[id];
            if request.passed == 0 {
                request.instance = set;
            }
            let station = request.station;
            self.waiting_instances -= self.sets[request.replica][station].first_devices.len();
            let (task, _) = self.task(&self.requests[id]);
            let span = |&(device, seconds): &(usize, f64)| PredictedSpan {
                device,
                request: id,
                station,
                from,
                seconds,
                held: task.seconds,
            };
            self.run.spans.extend(task.busy_seconds.iter().map(span));
            let ticks = (task.seconds.max(0.0) * TICKS_PER_SECOND).round() as Ticks;
            self.completions.push(Reverse((self.now + ticks, id)));
        }
    }

    /// Advances to the next instant at which a task ends, and returns the replicas whose requests are finished then;
    /// `None` if no request is in flight.
    fn advance(&mut self) -> Option<Vec<usize>> {
        let Reverse((now, _)) = *self.completions.peek()?;
        self.now = now;
        let mut done = Vec::new();
        while let Some(&Reverse((time, id))) = self.completions.peek()
            && time == now
        {
            self.completions.pop();
            let (_, number) = self.task(&self.requests[id]);
            let request = &mut self.requests[id];
            let (_, sets) = &self.sets[request.replica][request.station].instances[request.instance];
            self.queue.release(&sets[number]);
            request.passed += 1;
            let stations = &self.load.replicas[request.replica].stations;
            if request.passed == stations[request.station].instances[request.instance].task_count() {
                request.passed = 0;
                request.station += 1;
                // Texts are encoded one after the other, each by all text stations.
                let passed_only_texts = stations[..request.station].iter().all(|station| station.work == Work::Text);
                let next_is_no_text = stations.get(request.station).is_none_or(|next| next.work != Work::Text);
                if request.text_passes_left > 0 && passed_only_texts && next_is_no_text {
                    (request.station, request.text_passes_left) = (0, request.text_passes_left - 1);
                }
            }
            if request.station < stations.len() {
                self.asking.push(id);
                continue;
            }
            done.push(request.replica);
            self.in_flight_count -= 1;
            self.run.done[id] = self.seconds();
        }
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(device: usize, seconds: f64) -> StationInstance {
        StationInstance::once(Task::on(device, seconds))
    }

    /// A replica with stations for texts, denoising and decoding.
    fn replica(stations: Vec<Vec<StationInstance>>, in_flight: usize) -> ReplicaLoad {
        let works = [Work::Text, Work::Denoise, Work::Decode];
        let stations = works.into_iter().zip(stations).map(|(work, instances)| Station { work, instances });
        ReplicaLoad { stations: stations.collect(), in_flight }
    }

    fn load(devices: usize, in_flight: usize, stations: Vec<Vec<StationInstance>>) -> Load {
        Load { devices, replicas: vec![replica(stations, in_flight)], first_texts_twice: false, batch: 1 }
    }

    fn close(got: f64, want: f64, within: f64) {
        assert!((got / want - 1.0).abs() <= within, "{got} rather than {want}");
    }

    /// Checks that `count` requests take as long as the busiest stage, plus the time to fill and drain the pipeline.
    fn check(load: &Load, rate: f64) {
        let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
        close(prediction.images_per_second, rate, 0.01);
        for count in [40, 200, 2000] {
            let (seconds, work) = (load.seconds_for(count), count as f64 / rate);
            let fill: f64 = 3.0
                * load.replicas[0]
                    .stations
                    .iter()
                    .flat_map(|station| &station.instances)
                    .map(StationInstance::seconds)
                    .fold(0.0, f64::max);
            assert!(seconds >= 0.999 * work && seconds <= work + fill, "{count} in {seconds}, {work} of work");
        }
    }

    #[test]
    fn one_device_does_one_thing_after_another() {
        let load = load(1, 1, vec![vec![whole(0, 0.25)], vec![whole(0, 2.0)], vec![whole(0, 0.5)]]);
        let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
        close(prediction.seconds_per_image, 2.75, 1e-9);
        close(prediction.images_per_second, 1.0 / 2.75, 1e-9);
        assert!(prediction.idle_share[0] < 1e-9);
        close(load.seconds_for(7), 7.0 * 2.75, 1e-9);
        close(load.seconds_for(100_000), 100_000.0 * 2.75, 1e-6);
        close(load.max_requests_per_second(), 1.0 / 2.75, 1e-9);
    }

    #[test]
    fn stages_on_devices_of_their_own_overlap() {
        let load = load(3, 3, vec![vec![whole(0, 0.5)], vec![whole(1, 4.0)], vec![whole(2, 1.0)]]);
        check(&load, 1.0 / 4.0);
        close(load.seconds_for(10), 0.5 + 10.0 * 4.0 + 1.0, 1e-9);
        let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
        close(prediction.seconds_per_image, 5.5, 1e-9);
        for (idle, want) in prediction.idle_share.iter().zip([7.0 / 8.0, 0.0, 0.75]) {
            assert!((idle - want).abs() < 0.01, "{idle} rather than {want}");
        }
    }

    #[test]
    fn a_pool_adds_up_the_rates_of_its_instances_however_unequal() {
        for (seconds, small) in [([4.0, 4.0, 4.0], 0.2), ([2.0, 4.0, 8.0], 0.1), ([3.0, 5.0, 7.0], 0.3)] {
            let unets = seconds.iter().enumerate().map(|(i, &seconds)| whole(1 + i, seconds)).collect();
            let mut load = load(4, 4, vec![vec![whole(0, small)], unets, vec![whole(0, small)]]);
            let rate = seconds.iter().map(|seconds| 1.0 / seconds).sum();
            close(load.max_requests_per_second(), rate, 1e-9);
            // If two UNets finish within the time of a decoding and an encoding, the second waits for its next text.
            close(load.predict(Tuning::PREDICTED_REQUESTS).images_per_second, rate, 0.05);
            load.replicas[0].in_flight = 6;
            check(&load, rate);
        }
    }

    #[test]
    fn a_device_of_two_stages_counts_their_sum() {
        // The text encoder and the VAE together are slower than the UNets.
        let load = load(3, 4, vec![vec![whole(0, 1.0)], vec![whole(1, 4.0), whole(2, 4.0)], vec![whole(0, 1.5)]]);
        check(&load, 1.0 / 2.5);
        close(load.max_requests_per_second(), 1.0 / 2.5, 1e-9);
    }

    #[test]
    fn unequal_replicas_share_one_queue() {
        let stages = |device, seconds| vec![vec![whole(device, 0.1 * seconds)], vec![whole(device, 0.9 * seconds)]];
        let replicas = [1.0, 3.0, 10.0].iter().enumerate().map(|(i, &s)| replica(stages(i, s), 1));
        let load = Load { devices: 3, replicas: replicas.collect(), first_texts_twice: false, batch: 1 };
        let rate = 1.0 + 1.0 / 3.0 + 0.1;
        close(load.predict(Tuning::PREDICTED_REQUESTS).images_per_second, rate, 0.01);
        close(load.seconds_for(86), 60.0, 0.01);
        assert!(load.predict(Tuning::PREDICTED_REQUESTS).idle_share.iter().all(|idle| *idle < 0.01));
    }

    #[test]
    fn a_guidance_split_lasts_as_long_as_its_slower_branch() {
        let split = StationInstance::once(Task { busy_seconds: vec![(0, 1.0), (1, 2.0)], seconds: 2.0 });
        let load = load(2, 1, vec![vec![whole(0, 0.0)], vec![split], vec![whole(1, 0.5)]]);
        let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
        close(prediction.seconds_per_image, 2.5, 1e-9);
        close(prediction.idle_share[0], 1.5 / 2.5, 1e-6);
        assert!(prediction.idle_share[1] < 1e-6);
    }

    /// A UNet of 20 steps, cut into one piece for each device.
    fn cut(seconds: &[f64]) -> StationInstance {
        let tasks = seconds.iter().enumerate().map(|(device, &seconds)| Task::on(device, seconds)).collect();
        StationInstance::repeated(tasks, 20)
    }

    #[test]
    fn a_cut_that_several_requests_pass_is_as_fast_as_its_slowest_piece() {
        let stages = |unet| vec![vec![whole(4, 0.1)], vec![unet], vec![whole(5, 0.1)]];
        let alone = load(6, 1, stages(cut(&[0.25; 4]))).predict(Tuning::PREDICTED_REQUESTS);
        close(alone.seconds_per_image, 0.2 + 20.0, 1e-9);
        close(alone.images_per_second, 1.0 / 20.2, 1e-9);
        check(&load(6, 6, stages(cut(&[0.25; 4]))), 1.0 / 5.0);
        check(&load(6, 6, stages(cut(&[0.2, 0.3, 0.25, 0.25]))), 1.0 / 6.0);
        close(load(6, 6, stages(cut(&[0.2, 0.3, 0.25, 0.25]))).max_requests_per_second(), 1.0 / 6.0, 1e-9);
    }

    #[test]
    fn a_request_that_holds_all_devices_of_a_cut_leaves_all_but_one_idle() {
        let held = StationInstance::once(Task { busy_seconds: vec![(0, 5.0), (1, 15.0)], seconds: 20.0 });
        let prediction =
            load(2, 2, vec![vec![whole(0, 0.0)], vec![held], vec![whole(1, 0.0)]]).predict(Tuning::PREDICTED_REQUESTS);
        close(prediction.images_per_second, 1.0 / 20.0, 1e-6);
        close(prediction.idle_share[0], 0.75, 1e-6);
        close(prediction.idle_share[1], 0.25, 1e-6);
    }

    #[test]
    fn a_request_does_not_overtake_an_older_one_that_waits_for_two_devices() {
        // The third request must wait although device 1 is free: the second waits for both devices, and the first has
        // 0.
        let both = StationInstance::once(Task { busy_seconds: vec![(0, 1.0), (1, 1.0)], seconds: 1.0 });
        let unets = [whole(0, 2.0), both, whole(1, 1.0)];
        let replica = |unet| replica(vec![vec![whole(2, 0.0)], vec![unet]], 1);
        let replicas = unets.into_iter().map(replica).collect();
        let run = Load { devices: 3, replicas, first_texts_twice: false, batch: 1 }.run(3);
        assert_eq!(run.done, [2.0, 3.0, 4.0]);
    }

    #[test]
    fn texts_are_encoded_before_a_unet_takes_their_device() {
        // The device of the text encoder is also one of a pool of UNets, in either order.
        for pool in [[0, 1], [1, 0]] {
            let unets = pool.map(|device| whole(device, 4.0)).to_vec();
            let load = load(2, 2, vec![vec![whole(0, 0.1)], unets, vec![whole(0, 0.1)]]);
            let run = load.run(2);
            close(run.makespan(), 4.4, 0.03);
            let prediction = load.predict(Tuning::PREDICTED_REQUESTS);
            assert!(prediction.images_per_second > 0.95 * 2.0 / 4.2, "{}", prediction.images_per_second);
        }
    }

    #[test]
    fn the_first_request_encodes_two_texts() {
        let mut load = load(2, 2, vec![vec![whole(0, 0.5)], vec![whole(1, 2.0)]]);
        close(load.seconds_for(3), 6.5, 1e-9);
        load.first_texts_twice = true;
        close(load.seconds_for(3), 7.0, 1e-9);
        close(load.predict(Tuning::PREDICTED_REQUESTS).seconds_per_image, 2.5, 1e-9);
    }

    #[test]
    fn several_text_encoders_encode_one_text_after_the_other() {
        let mut load = load(3, 2, vec![vec![whole(0, 0.5)], vec![whole(2, 2.0)]]);
        let second = Station { work: Work::Text, instances: vec![whole(1, 0.25)] };
        load.replicas[0].stations.insert(1, second);
        close(load.run(1).makespan(), 2.75, 1e-9);
        load.first_texts_twice = true;
        let run = load.run(1);
        close(run.makespan(), 3.5, 1e-9);
        assert_eq!(run.spans.iter().map(|span| span.station).collect::<Vec<_>>(), [0, 1, 0, 1, 2]);
    }

    #[test]
    fn busy_seconds_of_devices_add_up_and_spans_do_not_overlap() {
        let load = load(6, 5, vec![vec![whole(4, 0.1)], vec![cut(&[0.25; 4])], vec![whole(5, 0.1)]]);
        let run = load.run(9);
        let busy = run.busy(6, 0.0..f64::INFINITY);
        for (busy, want) in busy.iter().zip([45.0, 45.0, 45.0, 45.0, 0.9, 0.9]) {
            close(*busy, want, 1e-9);
        }
        let mut last = [0.0; 6];
        for span in &run.spans {
            assert!(span.from >= last[span.device] - 1e-9, "tasks on one device do not overlap");
            last[span.device] = span.from + span.seconds;
        }
    }

    #[test]
    fn the_cost_of_a_prediction_does_not_grow_with_the_number_of_requests() {
        let unet = StationInstance::repeated((0..4).map(|device| Task::on(device, 0.01)).collect(), 50);
        let load = load(6, 6, vec![vec![whole(4, 0.01)], vec![unet], vec![whole(5, 0.1)]]);
        // At each instant of 258 requests with 202 tasks each, six are in flight and six instances are waited for.
        let steps = load.predict(Tuning::PREDICTED_REQUESTS).steps;
        assert!(steps <= 12 * 258 * 202, "{steps}");
        // So many requests would not fit in memory: only the first few are simulated.
        close(load.seconds_for(usize::MAX), usize::MAX as f64 / 2.0, 0.01);
    }
}
