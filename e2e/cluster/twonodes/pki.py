"""Certificates and kubeconfigs: one certificate authority for everything, made anew for each cluster."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")


class Authority:
    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.server = server
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        extensions = ("-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
        _openssl("req", "-x509", *KEY, "-keyout", self.key("ca"), "-out", self.certificate("ca"), "-subj", "/CN=corral-e2e", *extensions)

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def kubeconfig(self, name: str) -> Path:
        return self.folder / f"{name}.kubeconfig"

    def issue(self, name: str, subject: str, alternatives: tuple[str, ...] = ()) -> None:
        """A client certificate, or with `alternatives` (such as `DNS:kubernetes`, `IP:10.96.0.1`) a serving one."""
        extensions = [
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            f"extendedKeyUsage={'serverAuth' if alternatives else 'clientAuth'}",
        ]
        if alternatives:
            extensions += ["-addext", f"subjectAltName={','.join(alternatives)}"]
        signer = ("-CA", self.certificate("ca"), "-CAkey", self.key("ca"))
        _openssl("req", "-x509", *KEY, *signer, "-keyout", self.key(name), "-out", self.certificate(name), "-subj", subject, *extensions)
        if not alternatives:
            self._write_kubeconfig(name)

    def issue_all(self, wanted: dict[str, tuple[str, tuple[str, ...]]]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda item: self.issue(item[0], *item[1]), wanted.items()))

    def service_account_keys(self) -> tuple[Path, Path]:
        private, public = self.folder / "service-account.key", self.folder / "service-account.pub"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private)
        _openssl("pkey", "-in", private, "-pubout", "-out", public)
        return private, public

    def _write_kubeconfig(self, name: str) -> None:
        cluster = {"server": self.server, "certificate-authority": str(self.certificate("ca"))}
        user = {"client-certificate": str(self.certificate(name)), "client-key": str(self.key(name))}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "corral-e2e", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "corral-e2e", "context": {"cluster": "corral-e2e", "user": name}}],
            "current-context": "corral-e2e",
        }
        self.kubeconfig(name).write_text(json.dumps(content, indent=1))


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
