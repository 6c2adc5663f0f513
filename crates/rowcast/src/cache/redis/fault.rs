//! What an error reply means, and what is to be done about it. Pure.

use super::super::Error;

/// An error reply, or no reply at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server does not have the script: nothing was executed.
    NoScript,
    /// The server is full: the command that said so was not executed.
    Full(String),
    /// A key holds another type than the command is for.
    WrongType(String),
    /// It may work in a moment, or on another server behind the same name.
    Lost(String),
    /// Somebody has to do something.
    Fatal(String),
}

impl Fault {
    /// What it means where neither a missing script nor a full server was to be expected.
    pub(super) fn into_error(self) -> Error {
        match self {
            Fault::NoScript => Error::Lost("Redis has lost a script that it was just given".to_owned()),
            Fault::Full(text) | Fault::Lost(text) => Error::Lost(text),
            Fault::WrongType(text) | Fault::Fatal(text) => Error::Fatal(text),
        }
    }
}

/// Every command that rowcast uses, as an ACL rule.
const ACL: &str = "~* +auth +select +type +get +set +mset +hget +hset +hgetall +exists +strlen +append +expire +pexpire +pttl +unlink +scan +evalsha +script|load";

/// Judges the text of an error reply (`OOM command not allowed …`), as `user` got it from the server at `place`.
pub(super) fn judge(reply: &str, place: &str, user: &str) -> Fault {
    let reply = cause(reply);
    let (code, detail) = reply.split_once(' ').unwrap_or((reply, ""));
    // What Redis says ends like a sentence, or without a sign.
    let said = if reply.ends_with(|c: char| c.is_alphanumeric() || c == '\'') { format!("{reply}.") } else { reply.to_owned() };
    let lost = |remedy: &str| Fault::Lost(format!("Redis at {place}: {said}{remedy}"));
    let fatal = |remedy: &str| Fault::Fatal(format!("Redis at {place}: {said}{remedy}"));
    match code {
        "NOSCRIPT" => Fault::NoScript,
        "OOM" => Fault::Full(format!(
            "Redis at {place}: {said} Nothing can be written until there is room: raise maxmemory, or remove keys that nobody needs"
        )),
        "WRONGTYPE" => Fault::WrongType(format!("Redis at {place}: {reply}")),
        "READONLY" => lost(
            " This is a replica: after a failover the name resolves to the new master before long; if it does not, the URL names a replica",
        ),
        "MISCONF" => lost(
            " Redis refuses writes because it cannot save to disk: see its log and the space on its disk (or set stop-writes-on-bgsave-error to no)",
        ),
        "NOREPLICAS" => lost(" Redis refuses writes until min-replicas-to-write replicas are connected"),
        "LOADING" => lost(" It takes writes once its data is loaded"),
        "MASTERDOWN" => lost(" This is a replica that has lost its master"),
        "BUSY" => lost(" Somebody's script has been running for long; it ends by itself, or by SCRIPT KILL"),
        "CLUSTERDOWN" | "TRYAGAIN" => lost(""),
        "MOVED" | "ASK" | "CROSSSLOT" => fatal(CLUSTER),
        "NOAUTH" => fatal(" Give user and password in the cache's URL: redis://user:password@host"),
        "WRONGPASS" => fatal(" User or password in the cache's URL are not right"),
        "DENIED" => fatal(" Redis is in protected mode: give it a password, or bind it to the address that is used"),
        "NOPERM" => Fault::Fatal(no_permission(reply, place, user)),
        // Redis 6 says so when the script's own commands are not permitted.
        "ERR" if detail.contains("The user executing the script can't") => Fault::Fatal(no_permission(reply, place, user)),
        "ERR" if detail.contains("non local key") || detail.contains("same slot") => fatal(CLUSTER),
        "ERR" if detail.starts_with("unknown command") => fatal(" rowcast cannot do without it: was it renamed or disabled?"),
        "ERR" if detail.starts_with("DB index") || detail.starts_with("invalid DB index") => {
            fatal(" The last part of the cache's URL is the number of a database that the server has")
        }
        "ERR" if detail.contains("AUTH") || detail.contains("'auth'") => {
            fatal(" The cache's URL has a user or a password that this server does not know of")
        }
        _ => lost(""),
    }
}

pub(super) const CLUSTER: &str = " The server is part of a Redis Cluster, where the keys of one block live in many slots and cannot change together; point rowcast at a \
     server that is not in cluster mode";

/// What stands before the command that grants it.
pub(super) const NEEDS: &str = "Everything that rowcast needs is given by: ";

fn no_permission(reply: &str, place: &str, user: &str) -> String {
    format!("Redis at {place}: {}. {NEEDS}ACL SETUSER {user} {ACL}", reply.trim_end_matches('.'))
}

/// The error inside of the one that Redis 6 wraps around what fails in a script:
/// `ERR Error running script (call to f_…): @user_script:5: @user_script: 5: -OOM command not allowed …`.
/// Redis 7 passes the inner error on as it is.
fn cause(reply: &str) -> &str {
    const MARK: &str = "@user_script";
    let reply = reply.trim_end();
    if !reply.starts_with("ERR Error running script") {
        return reply;
    }
    let Some(at) = reply.rfind(MARK) else { return reply };
    // `:5: ` or `: 5: ` stands between the mark and the error.
    let inner = reply[at + MARK.len()..].trim_start_matches([':', ' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
    let inner = inner.strip_prefix('-').unwrap_or(inner);
    let coded = inner.split(' ').next().is_some_and(|code| code.len() > 1 && code.bytes().all(|b| b.is_ascii_uppercase()));
    if coded { inner } else { reply }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(reply: &str) -> Fault {
        judge(reply, "cache:6379", "app")
    }

    #[track_caller]
    fn is_lost(reply: &str, says: &str) {
        assert!(matches!(judged(reply), Fault::Lost(text) if text.contains(says) && text.contains("cache:6379")), "{:?}", judged(reply));
    }

    #[track_caller]
    fn is_fatal(reply: &str, says: &str) {
        assert!(matches!(judged(reply), Fault::Fatal(text) if text.contains(says) && text.contains("cache:6379")), "{:?}", judged(reply));
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        is_lost("READONLY You can't write against a read only replica.", "replica");
        is_lost("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "disk");
        is_lost("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write");
        is_lost("LOADING Redis is loading the dataset in memory", "loaded");
        is_lost("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "lost its master");
        is_lost("BUSY Redis is busy running a script.", "SCRIPT KILL");
        is_lost("CLUSTERDOWN Hash slot not served", "CLUSTERDOWN");
        is_lost("ERR max number of clients reached", "max number of clients");
    }

    #[test]
    fn what_nobody_knows_is_never_taken_for_success() {
        is_lost("FUTURE something new", "FUTURE something new");
        is_lost("", "");
    }

    #[test]
    fn what_somebody_has_to_mend_stops_with_the_remedy() {
        is_fatal("MOVED 3999 127.0.0.1:6381", "cluster mode");
        is_fatal("ASK 3999 127.0.0.1:6381", "cluster mode");
        is_fatal("CROSSSLOT Keys in request don't hash to the same slot", "cluster mode");
        is_fatal("ERR Script attempted to access a non local key in a cluster node script: f, on @user_script:1.", "cluster mode");
        is_fatal("NOAUTH Authentication required.", "password in the cache's URL");
        is_fatal("WRONGPASS invalid username-password pair or user is disabled.", "not right");
        is_fatal("DENIED Redis is running in protected mode", "protected mode");
        is_fatal("NOPERM this user has no permissions to run the 'evalsha' command", "ACL SETUSER app ~* ");
        is_fatal("NOPERM this user has no permissions to run the 'evalsha' command", "'evalsha'");
        is_fatal("ERR unknown command 'EVALSHA', with args beginning with: ", "renamed or disabled");
        is_fatal("ERR DB index is out of range", "number of a database");
        is_fatal("ERR AUTH <password> called without any password configured for the default user.", "does not know of");
    }

    #[test]
    fn a_missing_script_and_a_full_server_have_answers_of_their_own() {
        assert_eq!(judged("NOSCRIPT No matching script. Please use EVAL."), Fault::NoScript);
        assert!(
            matches!(judged("OOM command not allowed when used memory > 'maxmemory'."), Fault::Full(text) if text.contains("maxmemory"))
        );
        assert!(matches!(judged("WRONGTYPE Operation against a key holding the wrong kind of value"), Fault::WrongType(_)));
    }

    #[test]
    fn the_error_that_redis_6_wraps_is_found() {
        let wrapped = |inner: &str| judged(&format!("ERR Error running script (call to f_64ab): @user_script:5: {inner}\n"));
        assert!(matches!(wrapped("@user_script: 5: -OOM command not allowed when used memory > 'maxmemory'."), Fault::Full(_)));
        assert!(matches!(wrapped("WRONGTYPE Operation against a key holding the wrong kind of value"), Fault::WrongType(_)));
        assert!(
            matches!(wrapped("@user_script: 5: -READONLY You can't write against a read only replica."), Fault::Lost(text) if text.contains("replica:"))
        );
        // What has no code of its own is passed on whole.
        assert!(matches!(wrapped("attempt to index a nil value"), Fault::Lost(text) if text.contains("attempt to index")));
        let forbidden = wrapped("@user_script: 5: The user executing the script can't run this command or subcommand");
        assert!(matches!(forbidden, Fault::Fatal(text) if text.contains("ACL SETUSER app")), "a user without the permission");
    }
}
