//! What an AMQP error means for whoever has to go on: connect again, stand by, or call somebody.

use lapin::ErrorKind;
use lapin::protocol::AMQPError;

use crate::broker::Error;

/// The reply codes of AMQP that need an answer of their own.
const ACCESS_REFUSED: u16 = 403;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;
const NOT_IMPLEMENTED: u16 = 540;

/// What mends each of the refusals. Each stands at the end of its error.
pub(super) const REMEDIES: [&str; 5] = [CERTIFICATE, ACCESS, VHOST, ARGUMENTS, VERSION];

const CERTIFICATE: &str = "If the broker has no TLS on this port, use the port that has it, or amqp:// without TLS. If its certificate is not signed by an authority that this system trusts, add its authority to the system's \
                           certificates, or name a file of authorities with the environment variable SSL_CERT_FILE.";
const ACCESS: &str = "Correct the user name or password in the broker's URL, or grant the user the permissions configure, write and read on \
                      \"^(rowcast\\.|amq\\.default).*\" (rabbitmqctl set_permissions).";
const VHOST: &str = "Create the vhost (rabbitmqctl add_vhost) and grant the user access to it (rabbitmqctl set_permissions -p VHOST), or correct \
                     the vhost in the broker's URL.";
const ARGUMENTS: &str = "Either set what it is made with (the queue type) in the configuration, or stop publisher and consumers, delete it and \
                         start again: what it held is read again from the source.";
const VERSION: &str = "RabbitMQ 3.10 or later is needed.";

/// The error of an operation; `what` is what was being done (`declaring the queue rowcast.shop.1of4`).
pub(super) fn failed(what: &str, error: &lapin::Error) -> Error {
    match error.kind() {
        ErrorKind::ProtocolError(error) => refused(what, error),
        ErrorKind::IOError(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
            Error::Fatal(format!("{what} failed: {cause}. {CERTIFICATE}"))
        }
        ErrorKind::IOError(cause) => Error::Lost(format!("{what} failed: {cause}")),
        _ => Error::Lost(format!("{what} failed: {error}")),
    }
}

fn refused(what: &str, error: &AMQPError) -> Error {
    let says = error.get_message().as_str().trim_end_matches('.');
    match error.get_id() {
        RESOURCE_LOCKED => Error::Standby(format!("{what} failed: {says}")),
        ACCESS_REFUSED => Error::Fatal(format!("{what} was refused: {says}. {ACCESS}")),
        // The limit of connections of a vhost or a user has the same code, and passes.
        NOT_ALLOWED if !says.contains("limit") => Error::Fatal(format!("{what} was refused: {says}. {VHOST}")),
        PRECONDITION_FAILED if says.contains("inequivalent") => {
            Error::Fatal(format!("{what} failed, because it exists with other arguments: {says}. {ARGUMENTS}"))
        }
        NOT_IMPLEMENTED => Error::Fatal(format!("{what} failed: the broker cannot do that: {says}. {VERSION}")),
        _ => Error::Lost(format!("{what} failed: {says}")),
    }
}
