//! Who writes to the database: the SQLite in this program, or Python's own in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rusqlite::Connection;

use super::application;

/// Somebody who executes statements one by one; a statement that fails is simply one that did nothing.
pub trait Writer {
    fn execute(&mut self, sql: &str);
}

impl Writer for Connection {
    fn execute(&mut self, sql: &str) {
        // Most statements are random, and many violate a constraint.
        drop(self.execute_batch(sql));
    }
}

pub fn bundled(path: &Path) -> Box<dyn Writer> {
    Box::new(application(path))
}

/// Debian's SQLite, through Python.
pub struct Python {
    child: Child,
    statements: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const SCRIPT: &str = r#"
import sqlite3, sys, json
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("PRAGMA foreign_keys = ON")
for line in sys.stdin:
    try:
        connection.execute(json.loads(line)).fetchall()
        print("ok", flush=True)
    except sqlite3.Error as error:
        print(str(error).replace("\n", " "), flush=True)
"#;

impl Python {
    pub fn start(path: &Path) -> Python {
        let mut child =
            Command::new("python3").args(["-c", SCRIPT]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let statements = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Python { child, statements, answers }
    }

    /// Executes and returns `ok` or what was wrong.
    pub fn say(&mut self, sql: &str) -> String {
        writeln!(self.statements, "{}", serde_json::to_string(sql).unwrap()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "Python ended at {sql}");
        answer.trim_end().to_owned()
    }
}

impl Writer for Python {
    fn execute(&mut self, sql: &str) {
        for statement in sql.split(";\n") {
            self.say(statement);
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
