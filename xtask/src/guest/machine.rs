//! QEMU's command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::paths;

/// One virtual machine.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// Shared with the guest as /out.
    pub(crate) out: &'a Path,
    pub(crate) link: Option<Link>,
}

/// A guest's end of the link between two guests.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Our socket and the other guest's: the link's two ends.
    pub(crate) sockets: [PathBuf; 2],
    /// The last digit of our MAC address.
    pub(crate) mac: u8,
    pub(crate) monitor: PathBuf,
    /// The directory that both guests see.
    pub(crate) shared: PathBuf,
    /// Where the frames are recorded, if this guest does that.
    pub(crate) capture: Option<PathBuf>,
}

const QEMU: &str = "qemu-system-x86_64";

/// `isa-debug-exit` because it ends QEMU at once. loglevel=5: warnings belong on the console, in
/// case that nobody lives to save dmesg. Software emulation is asked for by name: nested
/// virtualisation may be there and broken. The output goes to a `file` (our pipe): `stdio` would
/// hang up as soon as QEMU's empty standard input ends.
pub(crate) fn command(machine: &Machine<'_>) -> Result<Command> {
    let qemu = paths::program(QEMU).ok_or_else(|| {
        let line = apt::install_line(&["qemu-system-x86"]);
        Error::new(format!("{QEMU} is missing:\n  {line}"))
    })?;
    let mut command = Command::new(qemu);
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args([
            "-smp",
            &machine.cpus.to_string(),
            "-m",
            &machine.memory_mib.to_string(),
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(&machine.kernel.image)
        .arg("-initrd")
        .arg(&machine.kernel.initrd)
        .args([
            "-append",
            "console=ttyS0 loglevel=5 log_buf_len=4M panic=-1 mitigations=off nokaslr",
        ])
        .arg("-serial")
        .arg(option("file:", &machine.out.join("console.log"))?)
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .args(["-device", "virtio-rng-pci"])
        .args([
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "file,id=output,path=/dev/stdout",
        ])
        .args(["-device", "virtserialport,chardev=output,name=output"])
        .arg("-virtfs")
        .arg("local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap");
    share(&mut command, "out", machine.out)?;
    if let Some(link) = &machine.link {
        share(&mut command, "shared", &link.shared)?;
        let [local, remote] = &link.sockets;
        let local = option("local.path=", local)?;
        let remote = option("remote.path=", remote)?;
        command
            .arg("-monitor")
            .arg(format!(
                "{},server=on,wait=off",
                option("unix:", &link.monitor)?
            ))
            .arg("-netdev")
            .arg(format!(
                "dgram,id=n0,local.type=unix,{local},remote.type=unix,{remote}"
            ))
            .arg("-device")
            .arg(format!(
                "virtio-net-pci,netdev=n0,mac=02:00:00:00:01:0{},host_mtu=4500",
                link.mac
            ));
        if let Some(capture) = &link.capture {
            let file = option("file=", capture)?;
            command
                .arg("-object")
                .arg(format!("filter-dump,id=d0,netdev=n0,maxlen=65535,{file}"));
        }
    }
    Ok(command)
}

fn share(command: &mut Command, tag: &str, directory: &Path) -> Result<()> {
    let path = option("path=", directory)?;
    let options = format!("local,{path},mount_tag={tag},security_model=none,multidevs=remap");
    command.arg("-virtfs").arg(options);
    Ok(())
}

/// `name` and a path as part of a QEMU option, in which a comma is doubled.
fn option(name: &str, path: &Path) -> Result<String> {
    let path = path
        .to_str()
        .ok_or_else(|| Error::new(format!("{}: QEMU needs a path in UTF-8", path.display())))?;
    Ok(format!("{name}{}", path.replace(',', ",,")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(option("path=", Path::new("/a,b")).unwrap(), "path=/a,,b");
    }
}
