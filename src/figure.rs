//! Draws a plan as an SVG file without external resources.
//!
//! Each replica is a row with its devices, their memory and the data between them; below, a timeline shows what each
//! device does while the first few pictures are made.

use std::fmt::Write;

use crate::{
    backend::DeviceId,
    device_map::size::format_bytes,
    models::component::{ComponentId, PerComponent, Stage},
    pipeline::placement::{Place, Reside},
    planner::{
        plan::{ComponentPlan, DevicePlan, Edge, Plan, ReplicaPlan},
        predict::PredictedSpan,
        words::{per_second, seconds},
    },
};

/// The width of every drawing.
pub(crate) const WIDTH: f64 = 1000.0;
/// The space around it.
pub(crate) const MARGIN: f64 = 24.0;
/// Width and height of the box of one device.
const BOX: (f64, f64) = (216.0, 118.0);
const GAP: f64 = 29.0;
const PER_ROW: usize = 4;
/// The largest number of rows that are drawn; the number of the others is written below.
const REPLICAS: usize = 8;
const LANES: usize = 16;
const LANE: f64 = 24.0;

/// The colour of text.
pub(crate) const INK: &str = "#1f2933";
/// The colour of what is less important.
pub(crate) const FAINT: &str = "#7b8794";
/// The colour of borders and grids.
pub(crate) const LINE: &str = "#cbd2d9";

/// The colour of a component: components of one stage share it.
fn colour(stage: Stage) -> &'static str {
    match stage {
        Stage::Encode => "#2f9e77",
        Stage::EncodeImage => "#8b5fbf",
        Stage::Denoise => "#3366cc",
        Stage::Decode => "#d9730d",
    }
}

/// The kinds of memory on a device, with their colours.
const FILLINGS: [(&str, &str); 5] = [
    ("driver", "#9aa5b1"),
    ("weights", "#5b7fbf"),
    ("offloaded weights", "#a9bfe3"),
    ("activations", "#e8a34c"),
    ("kept", "#7fb58f"),
];

type Components = PerComponent<ComponentPlan>;

/// The marker at the end of an arrow, `url(#tip)`.
const TIP: &str = "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" \
                   markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#7b8794\"/></marker></defs>\n";

/// Text as it is written between tags and in attributes of HTML and SVG.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A drawing in progress.
pub(crate) struct Svg {
    body: String,
    /// Where the next row is drawn.
    pub(crate) y: f64,
}

impl Svg {
    /// An empty drawing whose first row is at `y`.
    pub(crate) fn new(y: f64) -> Self {
        Self { body: String::new(), y }
    }

    /// The drawing as an element or a file, as high as the rows so far.
    pub(crate) fn document(&self) -> String {
        let height = self.y + MARGIN;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} \
             {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\">\n{}</svg>\n",
            self.body
        )
    }

    pub(crate) fn put(&mut self, element: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), style: &str, text: &str) {
        let text = escaped(text);
        self.put(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>"));
    }

    pub(crate) fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), style: &str) {
        self.put(format_args!("<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" {style}/>"));
    }
}

/// The SVG file of a plan.
pub fn svg(plan: &Plan) -> String {
    let mut svg = Svg::new(MARGIN + 14.0);
    svg.put(format_args!("{TIP}<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"));
    let title = format!(
        "One picture of {}x{} in {}, {} with many",
        plan.largest.width,
        plan.largest.height,
        seconds(plan.seconds_per_image),
        per_second(plan.images_per_second)
    );
    svg.text((MARGIN, svg.y), &format!("font-size=\"18\" font-weight=\"600\" fill=\"{INK}\""), &title);
    svg.y += 22.0;
    legend(&mut svg, &plan.components);
    let mut column = 0;
    for (index, replica) in plan.replicas.iter().enumerate().take(REPLICAS) {
        // Replicas of one device are side by side.
        if replica.placement.devices().len() == 1 {
            if column == PER_ROW {
                (svg.y, column) = (svg.y + BOX.1 + 42.0, 0);
            }
            alone(&mut svg, plan, index, replica, column);
            column += 1;
            continue;
        }
        if column > 0 {
            (svg.y, column) = (svg.y + BOX.1 + 42.0, 0);
        }
        replica_row(&mut svg, plan, index, replica);
    }
    if column > 0 {
        svg.y += BOX.1 + 42.0;
    }
    if let more @ 1.. = plan.replicas.len().saturating_sub(REPLICAS) {
        let y = svg.y + 4.0;
        svg.text((MARGIN, y), &format!("font-size=\"13\" fill=\"{FAINT}\""), &format!("and {more} more replicas"));
        svg.y += 24.0;
    }
    timeline(&mut svg, plan);
    svg.document()
}

fn legend(svg: &mut Svg, components: &Components) {
    let components = components.iter().map(|(_, component)| (component.name.as_str(), colour(component.stage)));
    let mut x = MARGIN;
    for (name, colour) in components.chain(FILLINGS) {
        let y = svg.y;
        svg.rect((x, y - 9.0), (10.0, 10.0), &format!("rx=\"2\" fill=\"{colour}\""));
        svg.text((x + 15.0, y), &format!("font-size=\"12\" fill=\"{FAINT}\""), name);
        x += 33.0 + 6.4 * name.len() as f64;
    }
    svg.y += 14.0;
}

fn heading(index: usize, replica: &ReplicaPlan) -> String {
    let requests = if replica.in_flight == 1 { "request" } else { "requests" };
    format!("replica {index}: {} {requests} at once", replica.in_flight)
}

/// Draws a replica of one device, in a column of its row.
fn alone(svg: &mut Svg, plan: &Plan, index: usize, replica: &ReplicaPlan, column: usize) {
    let x = MARGIN + column as f64 * (BOX.0 + GAP);
    let style = format!("font-size=\"14\" font-weight=\"600\" fill=\"{INK}\"");
    svg.text((x, svg.y + 22.0), &style, &heading(index, replica));
    let id = replica.placement.devices()[0];
    if let Some(device) = plan.devices.iter().find(|device| device.id == id) {
        device_box(svg, device, (x, svg.y + 34.0), &components_on(&plan.components, replica, id));
    }
}

/// Draws the devices of one replica in rows of a few, and the data between them.
fn replica_row(svg: &mut Svg, plan: &Plan, index: usize, replica: &ReplicaPlan) {
    svg.y += 22.0;
    let style = format!("font-size=\"14\" font-weight=\"600\" fill=\"{INK}\"");
    svg.text((MARGIN, svg.y), &style, &heading(index, replica));
    let edges = joined(plan.edges.iter().filter(|edge| edge.replica == index));
    // Arrows are in the space above each row of boxes.
    let arrows = if edges.is_empty() { 12.0 } else { 20.0 + 13.0 * edges.len().min(6) as f64 };
    let used = replica.placement.devices();
    let place = |id: &DeviceId| {
        let at = used.iter().position(|known| known == id).unwrap_or(0);
        let column = (at % PER_ROW) as f64;
        (MARGIN + column * (BOX.0 + GAP), svg.y + arrows + (at / PER_ROW) as f64 * (BOX.1 + arrows))
    };
    let places: Vec<(f64, f64)> = used.iter().map(place).collect();
    for (id, at) in used.iter().zip(&places) {
        if let Some(device) = plan.devices.iter().find(|device| device.id == *id) {
            device_box(svg, device, *at, &components_on(&plan.components, replica, *id));
        }
    }
    let labelled = edges.len() <= 6;
    let mut labels = Vec::new();
    for (number, (from, to, what)) in edges.iter().enumerate() {
        let at = |id: &DeviceId| used.iter().position(|known| known == id).map(|at| places[at]);
        let (Some(a), Some(b)) = (at(from), at(to)) else { continue };
        // Edges that leave a box and edges that arrive do not share a point.
        let shift = 7.0 * (number as f64 - edges.len() as f64 / 2.0).clamp(-9.0, 9.0);
        let (ax, bx) = (a.0 + BOX.0 / 2.0 + shift, b.0 + BOX.0 / 2.0 + shift + 4.0);
        let top = if labelled { a.1.min(b.1) - 10.0 - 13.0 * number as f64 } else { a.1.min(b.1) - 16.0 };
        svg.put(format_args!(
            "<path d=\"M{ax:.1} {:.1}V{top:.1}H{bx:.1}V{:.1}\" fill=\"none\" stroke=\"{FAINT}\" stroke-width=\"1\" \
             marker-end=\"url(#tip)\"/>",
            a.1, b.1
        ));
        labels.push(((ax + bx) / 2.0, top, what));
    }
    // Labels are drawn after all arrows, so that no arrow crosses the text of another.
    for (middle, top, what) in labels.into_iter().filter(|_| labelled) {
        let width = 8.0 + 5.4 * what.len() as f64;
        svg.rect((middle - width / 2.0, top - 5.0), (width, 10.0), "fill=\"#ffffff\"");
        let style = format!("font-size=\"10.5\" fill=\"{INK}\" text-anchor=\"middle\"");
        svg.text((middle, top + 3.5), &style, what);
    }
    svg.y = places.iter().map(|(_, y)| y + BOX.1).fold(svg.y, f64::max) + 8.0;
}

/// Joins the edges between the same two devices, with the bytes of each kind.
fn joined<'a>(edges: impl Iterator<Item = &'a Edge>) -> Vec<(DeviceId, DeviceId, String)> {
    let mut joined: Vec<(DeviceId, DeviceId, String)> = Vec::new();
    for edge in edges {
        let what = format!("{} {}", format_bytes(edge.bytes_per_image), edge.what);
        match joined.iter_mut().find(|(from, to, _)| (*from, *to) == (edge.from, edge.to)) {
            Some((.., known)) => {
                known.push_str(", ");
                known.push_str(&what);
            }
            None => joined.push((edge.from, edge.to, what)),
        }
    }
    joined
}

/// The components on a device, as text.
fn components_on(components: &Components, replica: &ReplicaPlan, id: DeviceId) -> Vec<(Stage, String)> {
    let on = |component: ComponentId, place: &Place<DeviceId>| {
        let routes = place.routes();
        let names: &[&str] = if routes.len() == 2 { &["negative ", "positive "] } else { &[""] };
        let parts = routes.iter().zip(names).filter(|(route, _)| route.contains(&id)).map(|(route, name)| {
            let here = route.iter().filter(|device| **device == id).count();
            let part = if here < route.len() { format!(" {here} of {}", route.len()) } else { String::new() };
            let from = match route.reside {
                Reside::Device => "",
                Reside::Host => " from host",
                Reside::Disk => " from disk",
            };
            format!("{name}{}{part}{from}", components[component].name)
        });
        parts.collect::<Vec<_>>()
    };
    let mut all: Vec<(Stage, String)> = Vec::new();
    for (component, places) in replica.placement.iter() {
        let stage = components[component].stage;
        all.extend(places.iter().flat_map(|place| on(component, place)).map(|words| (stage, words)));
    }
    all
}

fn device_box(svg: &mut Svg, device: &DevicePlan, (x, y): (f64, f64), components: &[(Stage, String)]) {
    svg.rect((x, y), BOX, &format!("rx=\"6\" fill=\"#f7f9fb\" stroke=\"{LINE}\""));
    let (name, idle) = (device.id.to_string(), format!("{:.0}% idle", 100.0 * device.idle_share));
    svg.text((x + 12.0, y + 20.0), &format!("font-size=\"14\" font-weight=\"600\" fill=\"{INK}\""), &name);
    let right = format!("font-size=\"11\" fill=\"{FAINT}\" text-anchor=\"end\"");
    svg.text((x + BOX.0 - 12.0, y + 20.0), &right, &idle);
    // The bar of the device's memory.
    let (bar_x, bar_y, bar_width) = (x + 12.0, y + 30.0, BOX.0 - 24.0);
    svg.rect((bar_x, bar_y), (bar_width, 14.0), &format!("rx=\"2\" fill=\"#ffffff\" stroke=\"{LINE}\""));
    let parts =
        [device.overhead_bytes, device.weight_bytes, device.visitor_bytes, device.activation_bytes, device.keep_bytes];
    let mut from = bar_x;
    for (bytes, (_, colour)) in parts.into_iter().zip(FILLINGS) {
        let width = bar_width * bytes as f64 / device.budget_bytes.max(1) as f64;
        svg.rect((from, bar_y), (width, 14.0), &format!("fill=\"{colour}\""));
        from += width;
    }
    let full = format!("{} of {}", format_bytes(device.total_bytes()), format_bytes(device.budget_bytes));
    svg.text((bar_x, y + 58.0), &format!("font-size=\"11\" fill=\"{FAINT}\""), &full);
    for (line, (stage, words)) in components.iter().take(3).enumerate() {
        let y = y + 76.0 + 15.0 * line as f64;
        svg.rect((bar_x, y - 8.5), (9.0, 9.0), &format!("rx=\"2\" fill=\"{}\"", colour(*stage)));
        svg.text((bar_x + 14.0, y), &format!("font-size=\"12\" fill=\"{INK}\""), words);
    }
}

/// Draws what each device does while the first few pictures are made.
fn timeline(svg: &mut Svg, plan: &Plan) {
    let load = &plan.load;
    let count = (load.in_flight() + 2).clamp(3, 24);
    let run = load.run(count);
    let end = run.makespan();
    if end <= 0.0 {
        return;
    }
    svg.y += 30.0;
    let heading = format!("the first {} pictures, {} in all", count * load.batch, seconds(end));
    svg.text((MARGIN, svg.y), &format!("font-size=\"14\" font-weight=\"600\" fill=\"{INK}\""), &heading);
    svg.y += 12.0;
    let (left, right) = (MARGIN + 64.0, WIDTH - MARGIN);
    let x = |time: f64| left + (right - left) * time / end;
    let shown = plan.devices.len().min(LANES);
    let stages: Vec<Stage> = plan.components.iter().map(|(_, component)| component.stage).collect();
    let (top, bottom) = (svg.y, svg.y + LANE * shown as f64);
    let step = nice(end / 8.0);
    for tick in (0..).map(|tick| f64::from(tick) * step).take_while(|time| *time <= end * 1.0001) {
        let at = x(tick);
        svg.put(format_args!("<path d=\"M{at:.1} {top:.1}V{bottom:.1}\" stroke=\"{LINE}\" stroke-width=\"0.6\"/>"));
        let style = format!("font-size=\"10.5\" fill=\"{FAINT}\" text-anchor=\"middle\"");
        svg.text((at, bottom + 14.0), &style, &if tick == 0.0 { "0".to_string() } else { seconds(tick) });
    }
    for (number, device) in plan.devices.iter().enumerate().take(shown) {
        let y = svg.y + LANE * number as f64;
        let style = format!("font-size=\"12\" fill=\"{INK}\"");
        svg.text((MARGIN, y + LANE / 2.0 + 4.0), &style, &device.id.to_string());
        // Consecutive spans of the same request and stage are drawn as one: the steps of the loop.
        let goes_on = |last: &PredictedSpan, span: &PredictedSpan| {
            let gap = span.from - (last.from + last.held);
            (last.request, last.station) == (span.request, span.station) && gap < end / (right - left)
        };
        let mut stretches: Vec<PredictedSpan> = Vec::new();
        for span in run.spans.iter().filter(|span| span.device == number) {
            match stretches.last_mut() {
                Some(last) if goes_on(last, span) => {
                    last.seconds = span.from + span.seconds - last.from;
                    last.held = span.from + span.held - last.from;
                }
                _ => stretches.push(span.clone()),
            }
        }
        for span in stretches {
            let width = |seconds: f64| ((right - left) * seconds / end).max(0.4);
            let (from, busy, held) = (x(span.from), width(span.seconds), width(span.held));
            let fill = colour(stages[span.station]);
            // Neighbours have different shades, so that requests can be distinguished; a device that is held without
            // working is faint.
            let shade = if span.request % 2 == 0 { 0.95 } else { 0.7 };
            svg.rect((from, y + 3.0), (held, LANE - 6.0), &format!("fill=\"{fill}\" fill-opacity=\"0.15\""));
            svg.rect((from, y + 3.0), (busy, LANE - 6.0), &format!("fill=\"{fill}\" fill-opacity=\"{shade}\""));
            if busy > 16.0 {
                let style = "font-size=\"11\" fill=\"#ffffff\" text-anchor=\"middle\"";
                svg.text((from + busy / 2.0, y + LANE / 2.0 + 4.0), style, &span.request.to_string());
            }
        }
    }
    svg.y = bottom + 22.0;
    if let more @ 1.. = plan.devices.len() - shown {
        let y = svg.y + 8.0;
        svg.text((MARGIN, y), &format!("font-size=\"12\" fill=\"{FAINT}\""), &format!("and {more} more devices"));
        svg.y += 16.0;
    }
    times(svg, &plan.components);
}

/// Draws the times of a picture's stages.
fn times(svg: &mut Svg, components: &Components) {
    let words = components.iter().map(|(_, component)| format!("{} {}", component.name, seconds(component.seconds)));
    let words = format!("for each picture: {}", words.collect::<Vec<_>>().join(", "));
    svg.y += 14.0;
    svg.text((MARGIN, svg.y), &format!("font-size=\"12\" fill=\"{FAINT}\""), &words);
}

/// The next number up that is 1, 2 or 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|nice| *nice >= step).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        for (step, want) in [(0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (70.0, 100.0), (0.0021, 0.005)] {
            assert!((nice(step) / want - 1.0).abs() < 1e-9, "{step}: {}", nice(step));
        }
    }
}
