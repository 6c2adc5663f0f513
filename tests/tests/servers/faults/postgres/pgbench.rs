//! PostgreSQL's own load: `pgbench` with its TPC-B-like script, over fewer accounts so that they are written often.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use rowcast_testkit::folder::Folder;
use rowcast_testkit::postgres::PostgresServer;

use super::Server;

/// How many accounts there are.
const ACCOUNTS: u32 = 1000;

/// Transactions a second.
const RATE: u32 = 50;

/// What `pgbench` makes, with a key for its history, and a version that every update of a row raises.
const SCHEMA: &str = "
    ALTER TABLE pgbench_history ADD id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;
    INSERT INTO pgbench_branches VALUES (1, 0, ''); INSERT INTO pgbench_tellers SELECT i, 1, 0, '' FROM generate_series(1, 10) i;
    CREATE FUNCTION raise_version() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v = OLD.v + 1; RETURN NEW; END $$;
    DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['accounts', 'branches', 'tellers'] LOOP
            EXECUTE format('ALTER TABLE pgbench_%s ADD v bigint NOT NULL DEFAULT 0', name);
            EXECUTE format('CREATE TRIGGER raise BEFORE UPDATE ON pgbench_%s FOR EACH ROW EXECUTE FUNCTION raise_version()', name);
        END LOOP;
    END $$;
";

/// The part of the configuration.
pub const TABLES: &str = r#"
[[table]]
name = "pgbench_accounts"

[[table]]
name = "pgbench_branches"

[[table]]
name = "pgbench_tellers"

[[table]]
name = "pgbench_history"
"#;

/// Each table and its key.
pub const KEYS_OF: [(&str, &str); 4] =
    [("pgbench_accounts", "aid"), ("pgbench_branches", "bid"), ("pgbench_tellers", "tid"), ("pgbench_history", "id")];

/// The keys that are watched.
pub fn keys() -> Vec<String> {
    let accounts = (1..=100).map(|id| format!("pgbench_accounts:{id}"));
    accounts.chain((1..=10).map(|id| format!("pgbench_tellers:{id}"))).chain(["pgbench_branches:1".to_owned()]).collect()
}

/// Makes the tables.
pub fn initialise(server: &PostgresServer) {
    run(pgbench().args(["--initialize", "--init-steps=dtp", "--quiet"]).arg(server.url()));
    let accounts = format!("INSERT INTO pgbench_accounts SELECT i, 1, 0, '' FROM generate_series(1, {ACCOUNTS}) i;");
    server.execute(&(SCHEMA.to_owned() + &accounts)).expect("the tables of pgbench");
}

/// Runs for a second again and again, whether or not the server is there, until it is dropped.
pub struct Pgbench {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pgbench {
    /// Starts it.
    pub fn start(server: Arc<Server>) -> Pgbench {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let folder = Folder::new("rowcast-pgbench-").expect("a folder");
            let script = script(&folder);
            while !stopped.load(SeqCst) {
                let mut command = pgbench();
                command.args(["--no-vacuum", "--client=2", "--time=1", &format!("--rate={RATE}"), "--file"]).arg(&script);
                // Where the server is struck meanwhile it fails, as any application does.
                drop(command.arg(server.url()).output());
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Pgbench { stop, thread: Some(thread) }
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("pgbench could not be run");
        }
    }
}

fn pgbench() -> Command {
    PostgresServer::client_program("pgbench").expect("pgbench")
}

/// Its own script, as it prints it.
fn script(folder: &Folder) -> PathBuf {
    let text = run(pgbench().arg("--show-script=tpcb-like"));
    let fewer = text.replace("100000 * :scale", &ACCOUNTS.to_string());
    assert!(fewer.contains("UPDATE pgbench_accounts") && fewer != text, "{text}");
    let path = folder.path().join("script.sql");
    std::fs::write(&path, fewer).expect("a script");
    path
}

/// Both of its outputs.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("pgbench runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}
