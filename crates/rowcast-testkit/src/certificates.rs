//! A certificate authority of the test's own, and a server's certificate that it has signed, made with the openssl program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Certificate and key of a server on loopback, in a temporary folder.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes them; they hold for a day.
    pub fn make() -> Result<Certificates> {
        let folder = tempfile::tempdir()?;
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).current_dir(folder.path()).output().context("running openssl")?;
            if !output.status.success() {
                bail!("openssl {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(())
        };
        const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority = ["req", "-x509", "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=authority", "-days", "1"];
        openssl(&[&authority[..], &KEY].concat())?;
        openssl(&[&["req", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost"][..], &KEY].concat())?;
        std::fs::write(folder.path().join("names"), "subjectAltName = DNS:localhost, IP:127.0.0.1\n")?;
        let sign = ["x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"];
        openssl(&[&sign[..], &["-out", "server.pem", "-days", "1", "-extfile", "names"]].concat())?;
        Ok(Certificates { folder })
    }

    /// What a client must trust.
    pub fn authority(&self) -> PathBuf {
        self.path("authority.pem")
    }

    /// What the server shows.
    pub fn server(&self) -> PathBuf {
        self.path("server.pem")
    }

    /// Its key.
    pub fn key(&self) -> PathBuf {
        self.path("server.key")
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }
}
