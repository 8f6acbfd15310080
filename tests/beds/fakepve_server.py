"""Starts PyPI's fakepve beside the tests, with one API token, which its own command line cannot make: fakepve_server.py FOLDER

It writes FOLDER/tls.crt and, when it listens, FOLDER/port. Run by the Python of target/fakepve (tests/fakepve/requirements.txt). Own code
over the package's documented interface; nothing of the package, which is under the AGPL, is in this repository.
"""

import asyncio, os, sys

from fakepve import FakePve
from fakepve.certs import make_cert

TOKEN = ("root@pam!t1", "11111111-2222-3333-4444-555555555555")


async def main(folder):
    pve = FakePve(user="root@pam", password="secret", host="127.0.0.1", port=0)
    pve.time_scale = 0
    pve.apitokens[TOKEN[0]] = TOKEN[1]
    pve.add_vm(100, "web100", config={"scsi0": "local-lvm:vm-100-disk-0,size=16M"})
    pve.add_ct(200, "ct200", config={"rootfs": "local-lvm:vm-200-disk-0,size=16M"})
    certificate, key, _ = make_cert(folder, hosts=("127.0.0.1",))
    await pve.start(certificate, key)
    os.symlink(certificate, folder + "/tls.crt")
    with open(folder + "/port.new", "w") as f:
        f.write(str(pve.port))
    os.rename(folder + "/port.new", folder + "/port")
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
