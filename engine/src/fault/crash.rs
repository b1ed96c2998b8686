//! Power cuts at every operation, and again at every operation of the recovery.
//!
//! Checked in each state: the store opens; what is in it is what was acknowledged, or that and the one step that was being
//! done, whole; opening it again changes nothing. `FLASHBULB_CRASH_STATES` asks for as many states as it says, in workloads
//! by chance; the number that was reached is printed.

use super::cut::Chooser;
use super::disk::{FaultDisk, Image, Record, bits};
use super::workload::{Contents, Run, Step, contents, open};

/// What was asked for and what was acknowledged when, in events of the disk's record.
struct Story {
    record: Record,
    /// For each step: the event before which it was asked, the event before which it was acknowledged, and the contents
    /// after it. The first is the opening.
    steps: Vec<(usize, usize, Contents)>,
}

fn story(workload: &[Step]) -> Story {
    let disk = FaultDisk::new(Image::new());
    let mut run = Run::begin(disk.clone()).unwrap();
    let mut steps = vec![(0, disk.events(), Contents::new())];
    for step in workload {
        let asked = disk.events();
        run.go(*step).unwrap_or_else(|e| panic!("{workload:?}: {step:?}: {e}"));
        assert_eq!(run.contents().unwrap(), run.model, "{workload:?} after {step:?}");
        steps.push((asked, disk.events(), run.model.clone()));
    }
    let record = disk.record();
    Story { record, steps }
}

impl Story {
    /// What may be in the store after a cut before event `at`.
    fn allowed(&self, at: usize) -> Vec<&Contents> {
        let acknowledged = self.steps.iter().rposition(|(_, acknowledged, _)| *acknowledged <= at);
        let from = acknowledged.unwrap_or(0);
        let begun = |(asked, ..): &&(usize, usize, Contents)| *asked <= at;
        self.steps[from..].iter().take_while(begun).map(|(.., contents)| contents).collect()
    }
}

/// Opens what a cut left, checks it, and says what happened to the disk meanwhile and what was in the store.
fn recovered(
    image: Image,
    allowed: &[&Contents],
    place: &dyn Fn() -> String,
) -> (Record, Contents) {
    let disk = FaultDisk::new(image);
    let store = open(&disk).unwrap_or_else(|e| panic!("{}: {e}", place()));
    let record = disk.record();
    let found = contents(&store).unwrap_or_else(|e| panic!("{}: {e}", place()));
    assert!(allowed.contains(&&found), "{}: {found:#?}\nis none of {allowed:#?}", place());
    (record, found)
}

/// Cuts `story` before event `at`, opens it, and opens what that left; where `deep`, also cuts the first opening at each of its
/// own events. Returns the number of states looked at.
fn check(story: &Story, workload: &[Step], at: usize, chooser: Chooser, deep: bool) -> usize {
    let place = || format!("{workload:?}, cut before event {at}, {chooser:?}");
    let image = story.record.cut(at, chooser);
    let (record, found) = recovered(image, &story.allowed(at), &place);
    let again = record.cut(record.events.len(), Chooser::Kept);
    recovered(again, &[&found], &|| format!("{} and opened twice", place()));
    if !deep {
        return 1;
    }
    for second in 0..=record.events.len() {
        let chooser = Chooser::Chance(second as u64 * 0x9e37_79b9 + at as u64 + 1);
        let place = || format!("{} and again before event {second}, {chooser:?}", place());
        recovered(record.cut(second, chooser), &[&found], &place);
    }
    2 + record.events.len()
}

/// Cuts `workload` everywhere, or only in its last step where shorter workloads look at the rest.
fn sweep(workload: &[Step], whole: bool, chances: u64, deep: bool) -> usize {
    let story = story(workload);
    let before_last = story.steps.len().checked_sub(2).map_or(0, |before| story.steps[before].1);
    let from = if whole { 0 } else { before_last };
    let mut states = 0;
    for at in from..=story.steps.last().map_or(0, |(_, acknowledged, _)| *acknowledged) {
        states += check(&story, workload, at, Chooser::Kept, deep);
        states += check(&story, workload, at, Chooser::Dropped, deep);
        for chance in 0..chances {
            let seed = (chance << 32 | at as u64) + 1;
            states += check(&story, workload, at, Chooser::Chance(seed), deep);
        }
    }
    states
}

#[test]
fn every_short_workload_survives_a_cut_anywhere() {
    let states: usize =
        Step::workloads(3).iter().map(|workload| sweep(workload, false, 3, false)).sum();
    println!("{states} crash states");
    assert!(states >= 20_000, "only {states} states");
}

#[test]
fn a_second_cut_anywhere_in_the_recovery_changes_nothing() {
    let states: usize =
        Step::workloads(2).iter().map(|workload| sweep(workload, false, 1, true)).sum();
    println!("{states} crash states");
}

#[test]
fn workloads_by_chance_survive_too() {
    let asked = std::env::var("FLASHBULB_CRASH_STATES").ok();
    let wanted = asked.map_or(2_000, |n| n.parse().expect("FLASHBULB_CRASH_STATES is a number"));
    let (mut states, mut seed) = (0, 0);
    while states < wanted {
        seed += 1;
        let len = 4 + (bits(&mut (seed * 0x1234_5677)) % 20) as usize;
        let workload = Step::by_chance(len, seed);
        states += sweep(&workload, true, 2, seed % 8 == 0);
    }
    println!("{states} crash states, {seed} workloads");
}
