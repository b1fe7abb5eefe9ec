//! Figures of a run: pictures per second, the utilisation of each device, the remaining time, and the time to start.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sdshard::{backend::DeviceId, pipeline::Span};

use super::progress::seconds;

/// The figures of a run in progress.
#[derive(Debug, Clone)]
pub struct Gauge {
    started: Instant,
    /// The time to read the weights.
    load: Duration,
    replicas: usize,
    /// The time that each device worked for pictures that are done.
    busy: Vec<(DeviceId, Duration)>,
    /// The replicas that have finished a picture, so that caches are warm, and pages and kernels are loaded.
    warm: BTreeSet<usize>,
    /// The time when all replicas were warm, and the number of pictures that were done by then.
    warmed_up: Option<(Duration, usize)>,
    done: usize,
    last: Duration,
    planned: Planned,
    work: Work,
}

/// The plan's prediction of the time that pictures take.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// The time of a single picture.
    pub seconds_per_image: f64,
    /// The rate with many pictures in flight.
    pub images_per_second: f64,
}

/// The remaining work, in seconds that the plan predicts for each picture alone.
#[derive(Debug, Clone)]
struct Work {
    /// The planned time of each picture alone.
    alone: Vec<f64>,
    /// How many of these seconds are done per second, as planned: more than one if several pictures are drawn at once.
    planned_rate: f64,
    /// The sum over all pictures that are neither done nor failed.
    open: f64,
    /// The sum over all pictures that are done.
    done: f64,
    /// The value of `done` when all replicas were warm.
    done_warm: f64,
    /// The pictures that have not begun, the quickest first; the bits of positive numbers have the numbers' order.
    waiting: BTreeSet<(u64, usize)>,
    /// The pictures in flight, with the times when they began.
    under_way: BTreeMap<usize, Instant>,
}

impl Work {
    /// The work of pictures that take these numbers of seconds `alone`.
    fn new(alone: Vec<f64>, planned: Planned) -> Self {
        let waiting = alone.iter().enumerate().map(|(index, seconds)| (seconds.to_bits(), index)).collect();
        let (open, planned_rate) = (alone.iter().sum(), planned.images_per_second * planned.seconds_per_image);
        Self { alone, planned_rate, open, done: 0.0, done_warm: 0.0, waiting, under_way: BTreeMap::new() }
    }

    fn begin(&mut self, index: usize, now: Instant) {
        self.waiting.remove(&(self.alone[index].to_bits(), index));
        self.under_way.insert(index, now);
    }

    /// Removes a picture and returns its seconds.
    fn remove(&mut self, index: usize) -> f64 {
        self.waiting.remove(&(self.alone[index].to_bits(), index));
        self.under_way.remove(&index);
        self.open = (self.open - self.alone[index]).max(0.0);
        self.alone[index]
    }

    /// The time that all pictures should take: at least that of the slowest one.
    fn planned_seconds(&self) -> f64 {
        self.alone.iter().copied().fold(self.alone.iter().sum::<f64>() / self.planned_rate, f64::max)
    }

    /// The remaining time of the slowest picture that is not done, if each takes `slower` times what was planned.
    fn slowest(&self, slower: f64, now: Instant) -> f64 {
        let begun = self
            .under_way
            .iter()
            .map(|(&index, &since)| slower * self.alone[index] - now.saturating_duration_since(since).as_secs_f64());
        let waiting = self.waiting.last().map(|(_, index)| slower * self.alone[*index]);
        begun.chain(waiting).fold(0.0, f64::max)
    }
}

impl Gauge {
    /// The figures of a run that begins now, on `devices`, after `load`. `alone` are the planned seconds of each
    /// picture alone.
    pub fn new(
        started: Instant,
        load: Duration,
        devices: Vec<DeviceId>,
        replicas: usize,
        planned: Planned,
        alone: Vec<f64>,
    ) -> Self {
        let busy = devices.into_iter().map(|device| (device, Duration::ZERO)).collect();
        let last = Duration::ZERO;
        Self {
            started,
            load,
            replicas,
            busy,
            warm: BTreeSet::new(),
            warmed_up: None,
            done: 0,
            last,
            planned,
            work: Work::new(alone, planned),
        }
    }

    /// Records that picture `index` has begun.
    pub fn begun(&mut self, index: usize, now: Instant) {
        self.work.begin(index, now);
    }

    /// Records that picture `index` has failed.
    pub fn failed(&mut self, index: usize) {
        self.work.remove(index);
    }

    /// Records that `replica` has finished picture `index`.
    pub fn done(&mut self, index: usize, replica: usize, spans: &[Span], now: Instant) {
        self.done += 1;
        self.work.done += self.work.remove(index);
        self.last = now.saturating_duration_since(self.started);
        for span in spans {
            for (_, busy) in self.busy.iter_mut().filter(|(device, _)| span.devices.contains(device)) {
                *busy += span.elapsed;
            }
        }
        self.warm.insert(replica);
        if self.warmed_up.is_none() && self.warm.len() == self.replicas {
            self.warmed_up = Some((self.last, self.done));
            self.work.done_warm = self.work.done;
        }
    }

    /// The time to read the weights, in seconds.
    pub fn load_seconds(&self) -> f64 {
        self.load.as_secs_f64()
    }

    /// The time from the beginning until every replica had finished a picture, in seconds.
    pub fn warm_up_seconds(&self) -> Option<f64> {
        self.warmed_up.map(|(time, _)| time.as_secs_f64())
    }

    /// The rate of pictures since then, per second.
    pub fn steady_images_per_second(&self) -> Option<f64> {
        let (time, before) = self.warmed_up?;
        let elapsed = self.last.saturating_sub(time).as_secs_f64();
        (self.done > before && elapsed > 0.0).then(|| (self.done - before) as f64 / elapsed)
    }

    /// The share of the time in which each device worked for pictures that are done, in percent.
    pub fn utilisation(&self) -> impl Iterator<Item = (DeviceId, f64)> {
        let elapsed = self.last.as_secs_f64().max(f64::MIN_POSITIVE);
        self.busy.iter().map(move |(device, busy)| (*device, (100.0 * busy.as_secs_f64() / elapsed).min(100.0)))
    }

    /// The remaining time: at the measured rate, or at the plan's if there is none yet, and at least that of the
    /// slowest picture.
    fn remaining(&self, now: Instant) -> Duration {
        let work = &self.work;
        let seen = self.warmed_up.and_then(|(time, _)| {
            let elapsed = self.last.saturating_sub(time).as_secs_f64();
            (work.done > work.done_warm && elapsed > 0.0).then(|| (work.done - work.done_warm) / elapsed)
        });
        let rate = seen.unwrap_or(work.planned_rate).max(1e-9);
        let since = now.saturating_duration_since(self.started).saturating_sub(self.last).as_secs_f64();
        let slowest = work.slowest(work.planned_rate / rate, now);
        Duration::try_from_secs_f64((work.open / rate - since).max(slowest).max(0.0)).unwrap_or(Duration::MAX)
    }

    /// One line about the run: `3 of 8 done, 0.42/s, 12 s left; busy: cpu:0 97 %, cpu:1 42 %`.
    pub fn line(&self, of: usize, now: Instant) -> String {
        match of.saturating_sub(self.done) {
            0 => self.with_remaining(of, ""),
            _ => self.with_remaining(of, &format!(", {} left", seconds(self.remaining(now)))),
        }
    }

    fn with_remaining(&self, of: usize, remaining: &str) -> String {
        let rate = match self.steady_images_per_second() {
            Some(rate) => format!(", {rate:.2}/s"),
            None => String::new(),
        };
        let busy: Vec<_> = self.utilisation().map(|(device, percent)| format!("{device} {percent:.0} %")).collect();
        let busy = if self.done == 0 { String::new() } else { format!("; busy: {}", busy.join(", ")) };
        format!("{} of {of} done{rate}{remaining}{busy}", self.done)
    }

    /// Lines about the finished run: how many of `of` pictures are done, the time to start, the rate, and a comparison
    /// with the plan.
    pub fn closing_lines(&self, of: usize) -> Vec<String> {
        [self.with_remaining(of, ""), self.start_line()].into_iter().chain(self.beside_the_plan()).collect()
    }

    /// Compares the real rate with the plan's: pictures per second once all replicas are warm, or else the seconds for
    /// all pictures.
    fn beside_the_plan(&self) -> Option<String> {
        let images_per_second = self.planned.images_per_second;
        let (said, ratio) = match self.steady_images_per_second() {
            Some(real) => (format!("planned {images_per_second:.2}/s, real {real:.2}/s"), images_per_second / real),
            None if self.done > 0 && self.done == self.work.alone.len() => {
                let planned = Duration::try_from_secs_f64(self.work.planned_seconds()).ok()?;
                let ratio = self.last.as_secs_f64() / planned.as_secs_f64();
                (format!("planned {}, real {}", seconds(planned), seconds(self.last)), ratio)
            }
            None => return None,
        };
        // Smaller differences are caused by noise, small models and the first picture's cold caches.
        let measure =
            if !(0.5..=2.0).contains(&ratio) { "; `sdshard devices --measure` measures the devices anew" } else { "" };
        Some(format!("{said}{measure}"))
    }

    fn start_line(&self) -> String {
        let steady = match (self.warm_up_seconds(), self.steady_images_per_second()) {
            (Some(warm_up), Some(rate)) => format!(", {warm_up:.2} s to warm up, {rate:.2}/s after that"),
            (Some(warm_up), None) => format!(", {warm_up:.2} s to the first of every replica"),
            _ => String::new(),
        };
        format!("{:.2} s to load{steady}", self.load_seconds())
    }
}

#[cfg(test)]
mod tests {
    use sdshard::{backend::DeviceKind, models::component::PerComponent};

    use super::*;

    #[test]
    fn figures_leave_the_warm_up_out() {
        let cpu = |index| DeviceId::new(DeviceKind::Cpu, index);
        let started = Instant::now();
        let at = |tenths: u64| started + Duration::from_millis(100 * tenths);
        let span = |device: usize, tenths: u64| Span {
            component: PerComponent::from(vec![()]).ids().next().unwrap(),
            devices: vec![cpu(device)],
            started,
            elapsed: Duration::from_millis(100 * tenths),
        };
        let planned = Planned { seconds_per_image: 1.0, images_per_second: 0.5 };
        let mut gauge = Gauge::new(started, Duration::from_secs(3), vec![cpu(0), cpu(1)], 2, planned, vec![1.0; 4]);
        assert_eq!(gauge.line(4, at(10)), "0 of 4 done, 7.00 s left");
        gauge.done(0, 0, &[span(0, 20)], at(20));
        assert_eq!((gauge.warm_up_seconds(), gauge.steady_images_per_second()), (None, None));
        gauge.done(1, 1, &[span(1, 10), span(1, 10)], at(40));
        gauge.done(2, 0, &[span(0, 20)], at(50));
        assert_eq!((gauge.warm_up_seconds(), gauge.steady_images_per_second()), (Some(4.0), Some(1.0)));
        assert_eq!(gauge.line(4, at(55)), "3 of 4 done, 1.00/s, 0.50 s left; busy: cpu:0 80 %, cpu:1 40 %");
        assert_eq!(gauge.start_line(), "3.00 s to load, 4.00 s to warm up, 1.00/s after that");
        gauge.done(3, 1, &[span(1, 10)], at(60));
        assert_eq!(gauge.line(4, at(70)), "4 of 4 done, 1.00/s; busy: cpu:0 67 %, cpu:1 50 %");
        assert_eq!(gauge.beside_the_plan().unwrap(), "planned 0.50/s, real 1.00/s");
    }

    #[test]
    fn a_run_is_compared_with_its_plan() {
        let cpu = DeviceId::CPU;
        let started = Instant::now();
        let run = |seconds_per_image, tenths: &[u64]| {
            let planned = Planned { seconds_per_image, images_per_second: 1.0 / seconds_per_image };
            let alone = vec![seconds_per_image; tenths.len()];
            let mut gauge = Gauge::new(started, Duration::ZERO, vec![cpu], 1, planned, alone);
            for (index, at) in tenths.iter().enumerate() {
                gauge.done(index, 0, &[], started + Duration::from_millis(100 * at));
            }
            gauge.beside_the_plan()
        };
        assert_eq!(run(1.0, &[]), None);
        assert_eq!(run(1.0, &[15]).unwrap(), "planned 1.00 s, real 1.50 s");
        let anew = "; `sdshard devices --measure` measures the devices anew";
        assert_eq!(run(1.0, &[25]).unwrap(), format!("planned 1.00 s, real 2.50 s{anew}"));
        assert_eq!(run(1.0, &[15, 25, 35]).unwrap(), "planned 1.00/s, real 1.00/s");
        // The second replica's first picture is the last of all, so there is no time in which all replicas were warm.
        let planned = Planned { seconds_per_image: 1.0, images_per_second: 2.0 };
        let mut gauge = Gauge::new(started, Duration::ZERO, vec![cpu], 2, planned, vec![1.0; 3]);
        for (index, replica, tenths) in [(0, 0, 10), (1, 0, 20), (2, 1, 21)] {
            gauge.done(index, replica, &[], started + Duration::from_millis(100 * tenths));
        }
        assert_eq!(gauge.beside_the_plan().unwrap(), "planned 1.50 s, real 2.10 s");
        assert_eq!(run(0.25, &[15, 25, 35]).unwrap(), format!("planned 4.00/s, real 1.00/s{anew}"));
    }

    #[test]
    fn the_time_left_is_no_less_than_that_of_the_slowest_picture() {
        let started = Instant::now();
        let at = |seconds: u64| started + Duration::from_secs(seconds);
        // Four at once, the last of which has fifty times the steps.
        let planned = Planned { seconds_per_image: 1.0, images_per_second: 4.0 };
        let alone = [vec![1.0; 8], vec![50.0]].concat();
        let mut gauge = Gauge::new(started, Duration::ZERO, vec![DeviceId::CPU], 1, planned, alone);
        assert_eq!(gauge.remaining(at(0)), Duration::from_secs(50));
        gauge.begun(8, at(0));
        assert_eq!(gauge.remaining(at(10)), Duration::from_secs(40), "it is under way");
        for index in 0..8 {
            gauge.begun(index, at(10));
            gauge.done(index, 0, &[], at(11));
        }
        assert_eq!(gauge.remaining(at(20)), Duration::from_secs(30));
        gauge.failed(8);
        assert_eq!(gauge.remaining(at(20)), Duration::ZERO);
    }
}
