//! Power cuts at every operation, and again at every operation of the recovery.
//!
//! Checked in each state: the store opens; what is in it is what was acknowledged, or that and the one step that was being
//! done, whole; opening it again changes nothing; a snapshot that was answered is whole. Where the level promises less, what is in
//! it is what was acknowledged at some moment since the last sync. `FLASHBULB_CRASH_STATES` asks for as many states as it says, in
//! workloads by chance; the number that was reached is printed.

use std::path::Path;

use super::cut::Chooser;
use super::disk::{FaultDisk, Image, Record, bits};
use super::workload::{Contents, DIR, Run, Step, contents, open, open_copy};
use crate::disk::Disk;
use crate::types::Durability;

/// One step of a story, with events of the disk's record.
struct Told {
    /// The event before which it was asked, and before which it was answered.
    asked: usize,
    answered: usize,
    contents: Contents,
    /// Whether all before it is synced once it is answered.
    syncs: bool,
}

/// What was asked for and what was acknowledged when.
struct Story {
    record: Record,
    /// The first is the opening.
    steps: Vec<Told>,
    /// Snapshots: the event before which it was answered, its folder, and what must be in it.
    copies: Vec<(usize, String, Contents)>,
    level: Durability,
}

fn story(workload: &[Step], level: Durability) -> Story {
    let disk = FaultDisk::new(Image::new());
    let mut run = Run::begin(disk.clone(), level).unwrap();
    let opening =
        Told { asked: 0, answered: disk.events(), contents: Contents::new(), syncs: true };
    let (mut steps, mut copies) = (vec![opening], Vec::new());
    for step in workload {
        let asked = disk.events();
        run.go(*step).unwrap_or_else(|e| panic!("{workload:?}: {step:?}: {e}"));
        assert_eq!(run.contents().unwrap(), run.model, "{workload:?} after {step:?}");
        let (answered, contents) = (disk.events(), run.model.clone());
        let syncs = level == Durability::Sync || step.syncs();
        steps.push(Told { asked, answered, contents, syncs });
        copies.extend(run.copies.drain(..).map(|(dir, whole)| (answered, dir, whole)));
    }
    let record = disk.record();
    Story { record, steps, copies, level }
}

impl Story {
    /// What may be in the store after a cut before event `at`; `power` says whether more than the process ended.
    fn allowed(&self, at: usize, power: bool) -> Vec<&Contents> {
        let answered = |step: &Told| step.answered <= at && (step.syncs || !power);
        let from = self.steps.iter().rposition(answered).unwrap_or(0);
        let begun = self.steps[from..].iter().take_while(|step| step.asked <= at);
        begun.map(|step| &step.contents).collect()
    }

    fn cut(&self, at: usize, chooser: Chooser) -> Image {
        self.record.cut(at, chooser)
    }

    fn end(&self) -> usize {
        self.steps.last().map_or(0, |step| step.answered)
    }
}

/// Opens what a cut left, checks it, and says what happened to the disk meanwhile and what was in the store.
fn recovered(
    image: Image,
    level: Durability,
    allowed: &[&Contents],
    place: &dyn Fn() -> String,
) -> (Record, Contents) {
    let disk = FaultDisk::new(image);
    let store = open(&disk, level).unwrap_or_else(|e| panic!("{}: {e}", place()));
    let record = disk.record();
    let found = contents(&store).unwrap_or_else(|e| panic!("{}: {e}", place()));
    assert!(allowed.contains(&&found), "{}: {found:#?}\nis none of {allowed:#?}", place());
    (record, found)
}

/// Cuts `story` before event `at`, opens it, and opens what that left; where `deep`, also cuts the first opening at each of its
/// own events. Returns the number of states looked at.
fn check(story: &Story, workload: &[Step], at: usize, chooser: Chooser, deep: bool) -> usize {
    let level = story.level;
    let place = || format!("{workload:?} {level:?}, cut before event {at}, {chooser:?}");
    let image = story.cut(at, chooser);
    for (_, dir, whole) in story.copies.iter().filter(|(answered, ..)| *answered <= at) {
        let copy = open_copy(&FaultDisk::new(image.clone()), dir);
        let found = copy.and_then(|copy| contents(&copy));
        assert_eq!(&found.unwrap_or_else(|e| panic!("{}: {dir}: {e}", place())), whole);
    }
    let power = !matches!(chooser, Chooser::Kept);
    let (record, found) = recovered(image, level, &story.allowed(at, power), &place);
    let again = record.cut(record.events.len(), Chooser::Kept);
    recovered(again, level, &[&found], &|| format!("{} and opened twice", place()));
    if !deep {
        return 1;
    }
    for second in 0..=record.events.len() {
        let chooser = Chooser::Chance(second as u64 * 0x9e37_79b9 + at as u64 + 1);
        let place = || format!("{} and again before event {second}, {chooser:?}", place());
        recovered(record.cut(second, chooser), level, &[&found], &place);
    }
    2 + record.events.len()
}

/// Cuts `workload` everywhere, or only in its last step where shorter workloads look at the rest.
fn sweep(workload: &[Step], level: Durability, whole: bool, chances: u64, deep: bool) -> usize {
    let story = story(workload, level);
    let before_last = story.steps.len().checked_sub(2).map_or(0, |at| story.steps[at].answered);
    let from = if whole { 0 } else { before_last };
    let mut states = 0;
    for at in from..=story.end() {
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
    let sweep = |workload: &Vec<Step>| sweep(workload, Durability::Sync, false, 2, false);
    let states: usize = Step::workloads(3).iter().map(sweep).sum();
    println!("{states} crash states");
    assert!(states >= 20_000, "only {states} states");
}

#[test]
fn levels_that_promise_less_keep_that() {
    let mut states = 0;
    for level in [Durability::Buffered, Durability::Manual] {
        let sweep = |workload: &Vec<Step>| sweep(workload, level, true, 3, false);
        states += Step::workloads(2).iter().map(sweep).sum::<usize>();
        for seed in 1..20 {
            states += sweep(&Step::by_chance(8, seed));
        }
        // Enough for a second log file: a hole in the first would be damage.
        states += sweep(&vec![Step::AddBatch; 16]);
    }
    println!("{states} crash states");
}

#[test]
fn a_second_cut_anywhere_in_the_recovery_changes_nothing() {
    let sweep = |workload: &Vec<Step>| sweep(workload, Durability::Sync, false, 1, true);
    let states: usize = Step::workloads(2).iter().map(sweep).sum();
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
        states += sweep(&workload, Durability::Sync, true, 2, seed % 8 == 0);
    }
    println!("{states} crash states, {seed} workloads");
}

#[test]
fn a_folder_that_an_earlier_process_made_is_there_after_a_power_cut() {
    let disk = FaultDisk::new(Image::new());
    // Killed before it synced the folder above.
    disk.create_dir(Path::new(DIR)).unwrap();
    let mut run = Run::begin(disk.clone(), Durability::Sync).unwrap();
    run.go(Step::AddText).unwrap();
    let record = disk.record();
    let image = record.cut(record.events.len(), Chooser::Dropped);
    let found = contents(&open(&FaultDisk::new(image), Durability::Sync).unwrap()).unwrap();
    assert_eq!(found, run.model);
}
