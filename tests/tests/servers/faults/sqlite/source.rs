//! Databases that go back in time: an older copy in the place of the file, a power cut that lost the last commits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::super::world::{PARTITIONS, World};
use super::{Sqlite, Tables, connect};

/// What a consumer says of each partition when the source's history is another one.
const NEW_HISTORY: &str = "history is another one: every table";

/// How a copy takes the place of the database.
#[derive(Clone, Copy, Debug)]
enum Replacement {
    /// Another file under the same name.
    Renamed,
    /// The same file with the copy's contents, as `.restore` of the `sqlite3` shell does it.
    Restored,
}

#[test]
fn an_older_copy_of_the_database_is_followed_whether_or_not_the_publisher_runs() {
    goes_back("older-copy", 100, &[(Replacement::Renamed, true), (Replacement::Restored, true), (Replacement::Renamed, false)]);
}

#[test]
fn a_database_that_lost_its_last_commits_and_went_on_is_followed_whether_or_not_the_publisher_runs() {
    goes_back("power-cut", 4, &[(Replacement::Renamed, true), (Replacement::Restored, true), (Replacement::Restored, false)]);
}

/// In each round the database loses that many transactions, which had been shipped, and others take their places in the changelog.
fn goes_back(pipeline: &str, transactions: u64, rounds: &[(Replacement, bool)]) {
    let sqlite = Arc::new(Sqlite::new(Tables::Five));
    let mut world = World::on(sqlite.clone(), pipeline, &crate::rabbitmq::shared().url());
    let mut publisher = Some(world.publisher("publisher"));
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    for (round, (replacement, runs)) in (1..).zip(rounds) {
        world.writer.wait_for_more(30);
        world.writer.stop();
        let copy = copy_of(&sqlite.path());
        world.write_again(round * 1_000_000);
        world.writer.wait_for_more(transactions);
        world.writer.stop();
        world.wait_until_agreed();
        if !runs && let Some(publisher) = publisher.take() {
            publisher.leave();
        }

        world.excuse();
        replace(*replacement, &sqlite.path(), &copy);
        world.write_again(round * 1_000_000 + 500_000);
        // The places of what was lost are taken.
        world.writer.wait_for_more(transactions + 10);
        let publisher = publisher.get_or_insert_with(|| world.publisher(&format!("publisher-{round}")));
        world.wait_until_said(NEW_HISTORY, usize::try_from(round).expect("a few") * PARTITIONS);
        world.wait_until_settled();
        world.watch_anew();
        assert!(publisher.lives(), "{}", publisher.log().tail());
    }
    world.writer.wait_for_more(30);
    world.judge(&mut [publisher.as_mut().expect("it was started again"), &mut consumer]);
}

fn copy_of(database: &Path) -> PathBuf {
    let copy = database.with_extension("copy");
    if copy.exists() {
        fs::remove_file(&copy).expect("the former copy goes");
    }
    connect(database).execute("VACUUM INTO ?1", [copy.to_str().expect("a plain path")]).expect("a copy");
    copy
}

fn replace(replacement: Replacement, database: &Path, copy: &Path) {
    match replacement {
        Replacement::Renamed => {
            for end in ["db-wal", "db-shm"] {
                // They may be gone already: whoever closes the database last removes them.
                drop(fs::remove_file(database.with_extension(end)));
            }
            fs::rename(copy, database).expect("the copy takes the place");
        }
        Replacement::Restored => {
            let restore = format!(".restore {}", copy.display());
            let output =
                Command::new("sqlite3").args(["-cmd", ".timeout 20000"]).arg(database).arg(&restore).output().expect("sqlite3 runs");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }
}
