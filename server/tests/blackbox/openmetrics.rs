//! A small reader of the OpenMetrics text format, version 1.0, written from its specification.
//!
//! Invariant: it takes nothing that the specification forbids an exposer to send, as far as counters, gauges and
//! histograms go; other types, timestamps and exemplars are refused, because Flashbulb promises none. It knows nothing
//! of Flashbulb.

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeMap<String, String>;

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

/// One metric family: its metadata and its samples, in their order.
#[derive(Debug, Clone, Default)]
pub struct Family {
    pub name: String,
    pub kind: String,
    pub unit: Option<String>,
    pub help: Option<String>,
    pub samples: Vec<Sample>,
}

/// A whole exposition, by family name.
#[derive(Debug, Clone)]
pub struct Exposition(pub Vec<Family>);

impl Exposition {
    /// Reads and checks a whole text; the error names what the specification forbids.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('\r') {
            return Err("a carriage return".to_owned());
        }
        let body = text.strip_suffix('\n').unwrap_or(text);
        let Some(body) = body.strip_suffix("# EOF") else {
            return Err(format!("the end is not # EOF: {:?}", tail(text)));
        };
        let mut families: Vec<Family> = Vec::new();
        if !body.is_empty() {
            let lines = body.strip_suffix('\n').ok_or("# EOF is not a line of its own")?;
            for line in lines.split('\n') {
                take(&mut families, line).map_err(|e| format!("{e}: {line:?}"))?;
            }
        }
        for family in &families {
            check(family).map_err(|e| format!("{}: {e}", family.name))?;
        }
        Ok(Self(families))
    }

    pub fn family(&self, name: &str) -> Option<&Family> {
        self.0.iter().find(|f| f.name == name)
    }

    /// The sum of the samples of this name whose labels include all of these; `None` where there is none.
    pub fn sum(&self, sample: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |s: &&Sample| {
            s.name == sample && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|x| x == v))
        };
        let found: Vec<f64> =
            self.0.iter().flat_map(|f| &f.samples).filter(has).map(|s| s.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// As [`Self::sum`] for a whole number, zero where there is no such sample.
    pub fn count(&self, sample: &str, labels: &[(&str, &str)]) -> u64 {
        let value = self.sum(sample, labels).unwrap_or(0.0);
        assert!(value >= 0.0 && value.fract() == 0.0, "{sample} {labels:?} counts {value}");
        value as u64
    }
}

fn tail(text: &str) -> String {
    text.chars().skip(text.chars().count().saturating_sub(40)).collect()
}

/// Takes one line before the end.
fn take(families: &mut Vec<Family>, line: &str) -> Result<(), String> {
    if let Some(comment) = line.strip_prefix('#') {
        return metadata(families, comment.strip_prefix(' ').ok_or("no space after #")?);
    }
    let sample = sample(line)?;
    let family = families.last_mut().ok_or("a sample before any family")?;
    let suffix = sample.name.strip_prefix(family.name.as_str());
    let allowed: &[&str] = match family.kind.as_str() {
        "counter" => &["_total", "_created"],
        "gauge" => &[""],
        "histogram" => &["_bucket", "_count", "_sum", "_created"],
        other => return Err(format!("a sample of a family of type {other:?}")),
    };
    if !suffix.is_some_and(|s| allowed.contains(&s)) {
        return Err(format!("no sample of {} {}", family.kind, family.name));
    }
    family.samples.push(sample);
    Ok(())
}

/// Takes `TYPE`, `UNIT` or `HELP`.
fn metadata(families: &mut Vec<Family>, line: &str) -> Result<(), String> {
    let mut parts = line.splitn(3, ' ');
    let (keyword, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let value = parts.next().ok_or("metadata without a value")?;
    if !is_name(name, true) {
        return Err(format!("{name:?} is no metric name"));
    }
    if families.last().is_none_or(|f| f.name != name) {
        if families.iter().any(|f| f.name == name) {
            return Err("the family comes twice".to_owned());
        }
        families.push(Family { name: name.to_owned(), ..Family::default() });
    }
    let family = families.last_mut().ok_or("no family")?;
    if !family.samples.is_empty() {
        return Err("metadata after a sample".to_owned());
    }
    let twice = match keyword {
        "TYPE" => {
            let known = ["counter", "gauge", "histogram"];
            if !known.contains(&value) {
                return Err(format!("no type that is expected here: {value:?}"));
            }
            !std::mem::replace(&mut family.kind, value.to_owned()).is_empty()
        }
        "UNIT" => family.unit.replace(value.to_owned()).is_some(),
        "HELP" => family.help.replace(unescape(value)?).is_some(),
        _ => return Err("a line with # that is no metadata".to_owned()),
    };
    if twice { Err(format!("{keyword} comes twice")) } else { Ok(()) }
}

fn is_name(name: &str, colons: bool) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.chars().next().is_some_and(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// Undoes the escapes of help texts and label values.
fn unescape(text: &str) -> Result<String, String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(c @ ('\\' | '"')) => c,
                other => return Err(format!("no escape: \\{other:?}")),
            },
            c => c,
        });
    }
    Ok(plain)
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err(format!("{name:?} is no metric name"));
    }
    let mut labels = Labels::new();
    if let Some(open) = rest.strip_prefix('{') {
        rest = label_set(open, &mut labels)?;
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    if value.contains(' ') {
        return Err("more than a value: a timestamp, an exemplar or a space".to_owned());
    }
    Ok(Sample { name: name.to_owned(), labels, value: number(value)? })
}

/// Reads labels up to the closing brace; what follows it.
fn label_set<'a>(mut rest: &'a str, labels: &mut Labels) -> Result<&'a str, String> {
    if let Some(after) = rest.strip_prefix('}') {
        return Ok(after);
    }
    loop {
        let (name, quoted) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, false) {
            return Err(format!("{name:?} is no label name"));
        }
        let mut escaped = false;
        let end = quoted.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (value, after) = quoted.split_at(end.ok_or("a label's value does not end")?);
        if labels.insert(name.to_owned(), unescape(value)?).is_some() {
            return Err(format!("the label {name} comes twice"));
        }
        match after.as_bytes().get(1) {
            Some(b',') => rest = &after[2..],
            Some(b'}') => return Ok(&after[2..]),
            _ => return Err("no , or } after a label".to_owned()),
        }
    }
}

fn number(text: &str) -> Result<f64, String> {
    let digits = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ if text.chars().all(digits) => text.parse().map_err(|e| format!("{e}")),
        _ => Err(format!("{text:?} is no number")),
    }
}

/// Checks what can only be seen when all of a family is there.
fn check(family: &Family) -> Result<(), String> {
    if family.kind.is_empty() {
        return Err("no TYPE".to_owned());
    }
    if let Some(unit) = family.unit.as_deref().filter(|u| !u.is_empty())
        && !family.name.ends_with(&format!("_{unit}"))
    {
        return Err(format!("the name does not end in its unit {unit}"));
    }
    let (mut seen, mut groups) = (BTreeSet::new(), Vec::<(Labels, Vec<&Sample>)>::new());
    for sample in &family.samples {
        if !seen.insert((&sample.name, &sample.labels)) {
            return Err(format!("comes twice: {sample:?}"));
        }
        if family.kind != "gauge" && (sample.value.is_nan() || sample.value < 0.0) {
            return Err(format!("counts cannot be so: {sample:?}"));
        }
        let mut labels = sample.labels.clone();
        if sample.name.ends_with("_bucket") {
            labels.remove("le").ok_or_else(|| format!("a bucket without le: {sample:?}"))?;
        }
        match groups.iter().position(|(of, _)| *of == labels) {
            Some(at) if at + 1 == groups.len() => groups[at].1.push(sample),
            Some(_) => return Err(format!("metrics are interleaved: {sample:?}")),
            None => groups.push((labels, vec![sample])),
        }
    }
    if family.kind == "histogram" {
        for (labels, samples) in &groups {
            histogram(samples).map_err(|e| format!("{labels:?}: {e}"))?;
        }
    }
    Ok(())
}

/// Checks the samples of one histogram.
fn histogram(samples: &[&Sample]) -> Result<(), String> {
    let one = |suffix: &str| {
        let mut of = samples.iter().filter(|s| s.name.ends_with(suffix));
        of.next().map(|s| s.value).ok_or_else(|| format!("no {suffix}"))
    };
    let (count, sum) = (one("_count")?, one("_sum")?);
    let (mut last, mut bound) = (0.0, f64::NEG_INFINITY);
    for bucket in samples.iter().filter(|s| s.name.ends_with("_bucket")) {
        let le = &bucket.labels["le"];
        let next = number(le)?;
        if next.is_nan() || next <= bound {
            return Err(format!("le={le} comes after {bound}"));
        }
        if bucket.value < last || bucket.value.fract() != 0.0 {
            return Err(format!("not cumulative at le={le}: {} after {last}", bucket.value));
        }
        if canonical(next).is_some_and(|c| c != *le) || !le.contains(['.', 'e', 'I']) {
            return Err(format!("le={le} is not written as the specification wants numbers"));
        }
        (last, bound) = (bucket.value, next);
    }
    if bound != f64::INFINITY {
        return Err("the last bucket is not +Inf".to_owned());
    }
    if last != count {
        return Err(format!("+Inf holds {last}, _count is {count}"));
    }
    if count == 0.0 && sum != 0.0 {
        return Err(format!("nothing was counted, and the sum is {sum}"));
    }
    Ok(())
}

/// How the specification demands that a number be written as `le`, where it demands it: thousandths up to ten, and
/// powers of ten.
fn canonical(number: f64) -> Option<String> {
    if number == f64::INFINITY {
        return Some("+Inf".to_owned());
    }
    let power = number.log10().round() as i32;
    if (-10..=10).contains(&power) && number == format!("1e{power}").parse::<f64>().ok()? {
        return Some(match power {
            -4..=5 => format!("{number:?}"),
            _ => format!("1e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs()),
        });
    }
    let thousandths = (number * 1000.0).round();
    let is_thousandth = (0.0..=10_000.0).contains(&thousandths) && thousandths / 1000.0 == number;
    is_thousandth.then(|| format!("{number:?}"))
}

const GOOD: &str = r#"# TYPE app_seconds histogram
# UNIT app_seconds seconds
# HELP app_seconds How \"long\" it took\\
app_seconds_bucket{of="a",le="1e-05"} 0
app_seconds_bucket{of="a",le="0.0001"} 1
app_seconds_bucket{of="a",le="0.25"} 1
app_seconds_bucket{of="a",le="1.0"} 3
app_seconds_bucket{of="a",le="+Inf"} 4
app_seconds_count{of="a"} 4
app_seconds_sum{of="a"} 12.5
app_seconds_bucket{of="b\"\n,}",le="+Inf"} 0
app_seconds_count{of="b\"\n,}"} 0
app_seconds_sum{of="b\"\n,}"} 0
# TYPE app_hits counter
app_hits_total 17
# TYPE app_open gauge
app_open{} -1.5
# EOF
"#;

#[test]
fn a_good_exposition_is_read() {
    let good = Exposition::parse(GOOD).expect("good");
    assert_eq!(good.sum("app_seconds_count", &[("of", "a")]), Some(4.0));
    assert_eq!(good.sum("app_seconds_sum", &[]), Some(12.5));
    assert_eq!(good.count("app_seconds_count", &[("of", "b\"\n,}")]), 0);
    assert_eq!((good.count("app_hits_total", &[]), good.sum("app_open", &[])), (17, Some(-1.5)));
    let family = good.family("app_seconds").expect("there");
    assert_eq!(family.help.as_deref(), Some("How \"long\" it took\\"));
    assert!(Exposition::parse("# EOF").is_ok());
}

#[test]
fn what_the_specification_forbids_is_refused() {
    let wrong = [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n\n"),
        ("# EOF\n", "# EOF\napp_late 1\n"),
        ("app_hits_total 17", "app_hits 17"),
        ("app_hits_total 17", "app_hits_total -1"),
        ("app_hits_total 17", "app_hits_total  17"),
        ("app_hits_total 17", "app_hits_total 17 "),
        ("app_hits_total 17", "app_hits_total 17\n"),
        ("app_hits_total 17", "app_hits_total 17\r"),
        ("app_hits_total 17", "app_hits_total 17\napp_hits_total 17"),
        ("app_hits_total 17", "app_hits_total seventeen"),
        ("app_hits_total 17", "app_hits_total inf"),
        ("app_open{} -1.5", "app_open{} -1.5\n# TYPE app_hits counter\napp_hits_total 1"),
        ("app_open{} -1.5", "app_open{} -1.5\n# HELP app_open late"),
        ("app_open{} -1.5", "app_open_total 1"),
        ("app_open{} -1.5", "app_open{a=\"1\",a=\"2\"} 1"),
        ("app_open{} -1.5", "app_open{a=\"\\t\"} 1"),
        ("app_open{} -1.5", "app_open{a=\"1} 1"),
        ("app_open{} -1.5", "app_open{1a=\"1\"} 1"),
        ("# TYPE app_open gauge", "# TYPE app_open gauge\n# TYPE app_open gauge"),
        ("# TYPE app_open gauge", "# a remark\n# TYPE app_open gauge"),
        ("# TYPE app_open gauge", "# HELP app_open untyped"),
        ("# UNIT app_seconds seconds", "# UNIT app_seconds minutes"),
        ("le=\"1.0\"} 3", "le=\"1\"} 3"),
        ("le=\"1e-05\"", "le=\"0.00001\""),
        ("le=\"0.25\"} 1", "le=\"0.250\"} 1"),
        ("le=\"0.25\"} 1", "le=\"0.25\"} 0"),
        ("le=\"0.25\"} 1", "le=\"0.00001\"} 1"),
        ("le=\"+Inf\"} 4", "le=\"+Inf\"} 5"),
        ("le=\"+Inf\"} 4", "le=\"2.5\"} 4"),
        ("app_seconds_sum{of=\"a\"} 12.5\n", ""),
        ("app_seconds_count{of=\"a\"} 4\n", ""),
        ("app_seconds_bucket{of=\"a\",le=\"0.0001\"} 1\n", "app_seconds_bucket{of=\"a\"} 1\n"),
        ("app_seconds_sum{of=\"b\\\"\\n,}\"} 0", "app_seconds_created{of=\"a\"} 1"),
    ];
    for (good, bad) in wrong {
        let text = GOOD.replacen(good, bad, 1);
        assert_ne!(text, GOOD, "{good:?} is not in the example");
        let read = Exposition::parse(&text);
        assert!(read.is_err(), "{bad:?} in place of {good:?} was taken");
    }
}
