//! Reports as HTML pages: one file each, without scripts and external resources, with plots as SVG.

use std::fmt::Write;

use super::{
    components,
    dtypes::{self, decibels},
    maps,
};
use crate::{
    device_map::size::format_bytes,
    figure::{FAINT, INK, LINE, MARGIN, Svg, WIDTH, escaped},
    planner::words::seconds,
};

const STYLE: &str = "\
body { color: #1f2933; background: #ffffff; font: 15px/1.5 Helvetica, Arial, sans-serif; max-width: 1000px; \
margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0.2em 1.2em; }
dt { color: #7b8794; } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; } th { color: #7b8794; font-weight: normal; }
th, td { text-align: right; padding: 0.15em 0.8em; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
p { color: #7b8794; }
";

/// Colours of kinds of operations and of data types, in order.
const COLOURS: [&str; 9] =
    ["#3366cc", "#d9730d", "#2f9e77", "#8b5fbf", "#c0392b", "#5b7fbf", "#e8a34c", "#7fb58f", "#b08968"];
const OTHER: &str = "#cbd2d9";
const PREDICTED: &str = "#a9bfe3";
const MEASURED: &str = "#3366cc";
/// The least share of a component's time that a kind of operation has a colour for.
const LEAST_SHARE: f64 = 0.005;
const ROW: f64 = 22.0;
/// The characters of a label that are drawn.
const LABEL: usize = 40;
/// The width of one character, for the space of texts.
const CHARACTER: f64 = 6.6;

/// What is said at the top of a page: names and texts, such as the machine, the date and the command.
pub type Facts = [(&'static str, String)];

/// The page of `sdshard bench`.
pub fn components(report: &components::Report, facts: &Facts) -> String {
    let mut totals: Vec<(&str, f64)> = Vec::new();
    for (_, figures) in &report.components {
        for (op, share) in figures.op_shares.iter().filter(|(_, share)| *share >= LEAST_SHARE) {
            match totals.iter_mut().find(|(known, _)| known == op) {
                Some((_, total)) => *total += share * figures.median_s,
                None => totals.push((op, share * figures.median_s)),
            }
        }
    }
    totals.sort_by(|a, b| b.1.total_cmp(&a.1));
    let ops: Vec<(&str, &str)> = totals.iter().map(|(op, _)| *op).zip(COLOURS).collect();
    let bar = |(name, figures): &(String, components::Figures)| {
        let of = |op: &str| figures.op_shares.iter().find(|(known, _)| known == op).map_or(0.0, |(_, share)| *share);
        let mut parts: Vec<_> = ops.iter().map(|(op, colour)| (of(op) * figures.median_s, *colour)).collect();
        parts.push((figures.median_s - parts.iter().map(|(time, _)| time).sum::<f64>(), OTHER));
        Bar { label: name.clone(), parts, note: seconds(figures.median_s) }
    };
    let mut legend = ops.clone();
    legend.push((if ops.is_empty() { "all operations" } else { "other operations" }, OTHER));
    let plot = bars(&report.components.iter().map(bar).collect::<Vec<_>>(), &legend);
    let row = |(name, figures): &(String, components::Figures)| {
        vec![
            name.clone(),
            seconds(figures.median_s),
            seconds(figures.min_s),
            seconds(figures.max_s),
            format!("{:.2}", figures.gflop),
            format!("{:.1}", figures.gflops),
            format!("{:.0} %", 100.0 * figures.peak_share),
            format_bytes(figures.peak_bytes),
        ]
    };
    let head = ["component", "median", "least", "most", "GFLOP", "GFLOP/s", "of peak", "memory"];
    let table = table(&head, report.components.iter().map(row));
    page("Components", facts, &[("Median time of one call, by kind of operation", plot), ("Figures", table)])
}

/// The page of `sdshard bench maps`.
pub fn maps(report: &maps::Report, facts: &Facts) -> String {
    let plot =
        |planned: &dyn Fn(&maps::Figures) -> f64, measured: &dyn Fn(&maps::Figures) -> f64, word: fn(f64) -> String| {
            let pair = |map: &maps::Figures| {
                let bar = |label: &str, value: f64, colour| Bar {
                    label: label.to_owned(),
                    parts: vec![(value, colour)],
                    note: word(value),
                };
                [bar(&map.name, planned(map), PREDICTED), bar("", measured(map), MEASURED)]
            };
            bars(
                &report.maps.iter().flat_map(pair).collect::<Vec<_>>(),
                &[("predicted", PREDICTED), ("measured", MEASURED)],
            )
        };
    let all = format!("{} pictures that are requested at once", report.images);
    let mut sections = vec![
        (all.as_str(), plot(&|map| map.planned_all_s, &|map| map.all_s, seconds)),
        ("One picture alone", plot(&|map| map.planned_one_s, &|map| map.one_s, seconds)),
    ];
    let memory =
        plot(&|map| map.planned_bytes as f64, &|map| map.peak_bytes as f64, |bytes| format_bytes(bytes as u64));
    let what = "<p>Measured are the weights and the working memory of all devices; the prediction also has what a request \
                keeps between steps, what drivers occupy, and weights in host memory.</p>\n";
    sections.push(("Memory", what.to_owned() + &memory));
    let row = |map: &maps::Figures| {
        let devices: Vec<_> = map.devices.iter().map(ToString::to_string).collect();
        let times = [map.all_s, map.planned_all_s, map.one_s, map.planned_one_s, map.first_s, map.load_s].map(seconds);
        let bytes = [map.peak_bytes, map.planned_bytes].map(format_bytes);
        [vec![map.name.clone(), devices.join(", "), map.replicas.to_string()], times.to_vec(), bytes.to_vec()].concat()
    };
    let head = [
        "map",
        "devices",
        "replicas",
        "all",
        "predicted",
        "one",
        "predicted",
        "first",
        "loading",
        "memory",
        "predicted",
    ];
    sections.push(("Figures", table(&head, report.maps.iter().map(row))));
    if !report.failed.is_empty() {
        let row = |(name, reason): &(String, String)| vec![name.clone(), reason.clone()];
        sections.push(("Not measured", table(&["map", "reason"], report.failed.iter().map(row))));
    }
    page("Device maps", facts, &sections)
}

/// The page of `sdshard bench dtypes`.
pub fn dtypes(report: &dtypes::Report, facts: &Facts) -> String {
    let coloured = || report.types.iter().zip(COLOURS.into_iter().cycle());
    let pair = |(figures, colour): (&dtypes::Figures, &'static str)| {
        [("least", figures.least_psnr_db), ("median", figures.median_psnr_db)].map(|(what, psnr)| Bar {
            label: format!("{}, {what}", figures.dtype),
            parts: vec![(if psnr.is_finite() { psnr } else { 0.0 }, colour)],
            note: decibels(psnr),
        })
    };
    let psnr = bars(&coloured().flat_map(pair).collect::<Vec<_>>(), &[]);
    let line = |(figures, colour): (&dtypes::Figures, &'static str)| {
        let line = |what: &str, of: fn(&dtypes::LatentError) -> f64, style: &'static str| Line {
            name: format!("{}, {what}", figures.dtype),
            colour,
            style,
            values: figures.latents.iter().map(of).collect(),
        };
        [line("median", |error| error.median, ""), line("greatest", |error| error.greatest, "stroke-dasharray=\"5 4\"")]
    };
    let errors = "<p>Errors of 0 have no place on the logarithmic axis.</p>\n".to_owned()
        + &lines(&coloured().flat_map(line).collect::<Vec<_>>());
    let row = |figures: &dtypes::Figures| {
        let last = figures.latents.last();
        let error =
            |of: fn(&dtypes::LatentError) -> f64| last.map_or(String::new(), |last| format!("{:.1e}", of(last)));
        vec![
            figures.dtype.to_string(),
            decibels(figures.least_psnr_db),
            decibels(figures.median_psnr_db),
            error(|last| last.median),
            error(|last| last.greatest),
            format!("{}, seed {}", figures.worst.prompt, figures.worst.seed),
            figures.class.clone(),
        ]
    };
    let head =
        ["type", "least PSNR", "median PSNR", "median error", "greatest error", "worst prompt", "numerics class"];
    let sections = [
        ("PSNR of the pixels, compared with f32", psnr),
        ("Relative error of the latents behind each call of the denoiser", errors),
        ("Figures, with the error behind the last call", table(&head, report.types.iter().map(row))),
    ];
    page(&format!("Data types, {} pictures each", report.pictures), facts, &sections)
}

/// A page of sections, each a heading and HTML.
fn page(title: &str, facts: &Facts, sections: &[(&str, String)]) -> String {
    let mut body = String::new();
    for (name, text) in facts {
        // Writing to a String cannot fail.
        let _ = writeln!(body, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(text));
    }
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>{0}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n<dl>\n{body}</dl>\n",
        escaped(title)
    );
    for (heading, html) in sections {
        let _ = write!(page, "<h2>{}</h2>\n{html}", escaped(heading));
    }
    page + "</body>\n</html>\n"
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |tag: &str, cells: Vec<String>| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect::<String>();
        format!("<tr>{cells}</tr>\n")
    };
    let head = row("th", head.iter().map(ToString::to_string).collect());
    format!("<table>\n{head}{}</table>\n", rows.map(|cells| row("td", cells)).collect::<String>())
}

/// A bar of a plot.
struct Bar {
    label: String,
    /// The lengths of its parts, with their colours.
    parts: Vec<(f64, &'static str)>,
    /// The text behind the bar.
    note: String,
}

fn small(colour: &str) -> String {
    format!("font-size=\"12\" fill=\"{colour}\"")
}

fn legend(svg: &mut Svg, entries: &[(&str, &str)]) {
    let mut x = MARGIN;
    for (name, colour) in entries {
        svg.rect((x, svg.y - 9.0), (10.0, 10.0), &format!("rx=\"2\" fill=\"{colour}\""));
        svg.text((x + 15.0, svg.y), &small(FAINT), name);
        x += 34.0 + CHARACTER * name.chars().count() as f64;
    }
    svg.y += ROW;
}

/// Horizontal bars, the longest as long as there is space.
fn bars(bars: &[Bar], entries: &[(&str, &str)]) -> String {
    let mut svg = Svg::new(MARGIN);
    if !entries.is_empty() {
        legend(&mut svg, entries);
    }
    let characters = |text: &dyn Fn(&Bar) -> &str| bars.iter().map(|bar| text(bar).chars().count()).max().unwrap_or(0);
    let left = MARGIN + CHARACTER * (characters(&|bar| &bar.label).min(LABEL) + 2) as f64;
    let right = CHARACTER * (characters(&|bar| &bar.note) + 2) as f64;
    let length = |bar: &Bar| bar.parts.iter().map(|(value, _)| value.max(0.0)).sum::<f64>();
    let longest = bars.iter().map(length).fold(f64::MIN_POSITIVE, f64::max);
    for bar in bars {
        let label: String = match bar.label.chars().count() {
            ..=LABEL => bar.label.clone(),
            _ => bar.label.chars().take(LABEL - 1).chain(['…']).collect(),
        };
        let middle = svg.y + 4.0;
        svg.text((MARGIN, middle), &small(INK), &label);
        let mut x = left;
        for (value, colour) in &bar.parts {
            let width = (WIDTH - left - right) * value.max(0.0) / longest;
            svg.rect((x, svg.y - 7.0), (width, 15.0), &format!("fill=\"{colour}\""));
            x += width;
        }
        svg.text((x + CHARACTER, middle), &small(FAINT), &bar.note);
        // A bar without a label belongs to the one above it.
        svg.y += if bar.label.is_empty() { 1.4 * ROW } else { ROW };
    }
    svg.document()
}

/// A line of a plot.
struct Line {
    name: String,
    colour: &'static str,
    /// More attributes.
    style: &'static str,
    /// Its values at 1, 2, and so on.
    values: Vec<f64>,
}

/// Lines over the numbers of calls, with a logarithmic axis. Values that have no place there are left out.
fn lines(lines: &[Line]) -> String {
    const HEIGHT: f64 = 320.0;
    let has_place = |value: &f64| value.is_finite() && *value > 0.0;
    let logarithms =
        || lines.iter().flat_map(|line| line.values.iter().filter(|value| has_place(value))).map(|x| x.log10());
    let (least, most) = logarithms().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    if least > most {
        return String::new();
    }
    let (bottom, top) = (least.floor() as i32, (most.ceil() as i32).max(least.floor() as i32 + 1));
    let (left, right) = (MARGIN + 48.0, WIDTH - 130.0);
    let calls = lines.iter().map(|line| line.values.len()).max().unwrap_or(1);
    let x = |call: usize| left + (right - left) * call as f64 / (calls.max(2) - 1) as f64;
    let y = |logarithm: f64| MARGIN + HEIGHT * (f64::from(top) - logarithm) / f64::from(top - bottom);
    let mut svg = Svg::new(MARGIN + HEIGHT);
    for decade in bottom..=top {
        let at = y(f64::from(decade));
        svg.put(format_args!("<path d=\"M{left:.1} {at:.1}H{right:.1}\" stroke=\"{LINE}\"/>"));
        svg.text((left - 8.0, at + 4.0), &format!("{} text-anchor=\"end\"", small(FAINT)), &format!("1e{decade}"));
    }
    svg.text((left - 24.0, svg.y + 18.0), &format!("{} text-anchor=\"end\"", small(FAINT)), "call");
    for call in (0..calls).step_by(calls.div_ceil(12)) {
        let style = format!("{} text-anchor=\"middle\"", small(FAINT));
        svg.text((x(call), svg.y + 18.0), &style, &(call + 1).to_string());
    }
    for (number, Line { name, colour, style, values }) in lines.iter().enumerate() {
        let places = values.iter().enumerate().filter(|(_, value)| has_place(value));
        let places: Vec<_> = places.map(|(call, value)| format!("{:.1},{:.1}", x(call), y(value.log10()))).collect();
        let stroke = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" {style}");
        svg.put(format_args!("<polyline points=\"{}\" {stroke}/>", places.join(" ")));
        let at = MARGIN + ROW * number as f64;
        svg.put(format_args!("<path d=\"M{:.1} {at:.1}h20\" {stroke}/>", right + 12.0));
        svg.text((right + 38.0, at + 4.0), &small(FAINT), name);
    }
    svg.y = (svg.y + 18.0).max(MARGIN + ROW * lines.len() as f64);
    svg.document()
}
