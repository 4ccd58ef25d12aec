"""Hostile submissions. Each scores 0 points, and must not change any other score."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = str(Path(__file__).parents[1])
RIGHT = """import torch
def residual(p, q):
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)
"""
TARGET = "def residual(p, q):\n    return p\n"
SAYS = """import os, json, struct, stat
def say(m, raw=None):
    m = raw if raw is not None else json.dumps(m).encode()
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, struct.pack('!I', len(m)) + m)
        except OSError:
            pass
"""

HOSTILE = {
    "exit": """\
import os
os._exit(0)""",
    "sys-exit": """\
import sys
sys.exit(0)""",
    "exit-in-call": """\
import os
def residual(p, q):
    os._exit(0)""",
    "raise-system-exit": """\
def residual(p, q):
    raise SystemExit""",
    "kill-self": """\
import os, signal
def residual(p, q):
    os.kill(os.getpid(), signal.SIGKILL)""",
    "kill-parent": """\
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
"""
    + TARGET,
    "kill-everybody": """\
import os, signal
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
"""
    + TARGET,
    "fork-bomb": """\
import os
for _ in range(12):
    try:
        os.fork()
    except OSError:
        pass
"""
    + TARGET,
    "memory": """\
def residual(p, q):
    return bytearray(1 << 36)""",
    "memory-bit-by-bit": """\
def residual(p, q):
    held = []
    while True:
        held.append(bytearray(1 << 26))""",
    "endless-output": """\
def residual(p, q):
    while True:
        print('x' * 100000)""",
    "endless-loop": """\
while True:
    pass""",
    "sleeps": """\
import time
def residual(p, q):
    time.sleep(3600)""",
    "sleeping-thread": """\
import threading, time
threading.Thread(target=time.sleep, args=(3600,)).start()
"""
    + TARGET,
    "recursion": """\
def residual(p, q):
    return residual(p, q)""",
    "deep-answer": """\
def residual(p, q):
    x = []
    for _ in range(100000):
        x = [x]
    return x""",
    "huge-answer": """\
import torch
def residual(p, q):
    return torch.zeros(3000, 3000)""",
    "huge-file": """\
with open('big', 'wb') as f:
    for _ in range(10000):
        f.write(bytes(1 << 20))
"""
    + TARGET,
    "patched-checker": """\
import specdec_lab.teaching.exercises.judging as j, torch
j.same = j.judge = lambda *a, **k: True
torch.allclose = lambda *a, **k: True
"""
    + TARGET,
    "equal-to-everything": """\
class Yes:
    def __eq__(self, other):
        return True
    passed = True
def residual(p, q):
    return Yes()""",
    "reads-solutions": """\
import json
cells = json.load(open('@ROOT@/solutions/02_residual.ipynb'))['cells']
exec([''.join(c['source']) for c in cells if 'def residual' in ''.join(c['source'])][0])""".replace("@ROOT@", ROOT),
    "imports-the-reference": "from specdec_ref.acceptance import residual",
    "imports-by-path": """\
import importlib.util as u
s = u.spec_from_file_location('a', '@ROOT@/specdec_ref/acceptance.py')
m = u.module_from_spec(s)
s.loader.exec_module(m)
residual = m.residual""".replace("@ROOT@", ROOT),
    "writes-scores": """\
for path in @FILES@:
    with open(path, 'r+') as f:
        f.write('me,120')
"""
    + RIGHT,
    "speaks-for-the-process": """\
import os, json, struct
m = json.dumps({'value': {'tensor': [1.0, 0.0], 'dtype': 'float64'}}).encode()
for fd in range(3, 64):
    try:
        os.write(fd, struct.pack('!I', len(m)) + m)
    except OSError:
        pass
"""
    + TARGET,
    "network": """\
import socket
socket.create_connection(('127.0.0.1', @PORT@), timeout=3)
"""
    + RIGHT,
    "reads-tests": """\
residual = None
s=open('@ROOT@/tests/test_checks.py').read()
i=s.index('def residual_by_minimum')
from typing import Any
import torch
exec(s[i:s.index('def residual_float32')].replace('residual_by_minimum','residual'))""".replace("@ROOT@", ROOT),
    "umount": """\
residual = None
import ctypes,json
l=ctypes.CDLL(None)
l.umount2(b'@ROOT@/solutions',2)
l.umount2(b'@ROOT@/specdec_ref',2)
cells=json.load(open('@ROOT@/solutions/02_residual.ipynb'))['cells']
import torch
exec([''.join(c['source']) for c in cells if 'def residual' in ''.join(c['source'])][0])""".replace("@ROOT@", ROOT),
    "unshare-umount": """\
residual = None
import ctypes,json
l=ctypes.CDLL(None)
l.unshare(0x10020000)
l.umount2(b'@ROOT@/solutions',2)
l.umount2(b'@ROOT@/specdec_ref',2)
cells=json.load(open('@ROOT@/solutions/02_residual.ipynb'))['cells']
import torch
exec([''.join(c['source']) for c in cells if 'def residual' in ''.join(c['source'])][0])""".replace("@ROOT@", ROOT),
    "says-too-deep-an-answer": SAYS + "say(None, b'['*1000000 + b']'*1000000)\n" + TARGET,
    "says-what-it-defines": SAYS
    + """\
say({'ready': 'namespaces', 'names': ['residual'], 'broken': []})
say({'value': {'tensor': [1.0, 0.0], 'dtype': 'float64'}})
"""
    + TARGET,
    "says-no-answer": SAYS + "say([1])\n" + TARGET,
    "huge-number": """\
def residual(p, q):
    return 10**400""",
    "surrogates": r"""def residual(p, q):
    raise ValueError('\udcff\ud800')""",
    "surrogate-value": r"""def residual(p, q):
    return '\udcff\ud800'""",
    "surrogate-broken": r"""residual = None
raise ValueError('\udcff')
""",
    "terminal": r"""def residual(p, q):
    raise ValueError('\x1b[2J\x1b[H passed: all checks passed\n120 of 120 points')""",
    "forged-line-broken": r"""raise ValueError('x\n✓ passed: The residual: all checks passed')
def residual(p,q): return p""",
    "stdout-forged": r"""import os
print('✓ passed: The residual: all checks passed\n10 of 10 points')
os.write(1,b'{"score": 120}')
os.write(2,b'{"score": 120}')
open('results.json','w').write('{"score": 120}')
open('/tmp/results.json','w').write('{"score": 120}')
"""
    + TARGET,
    "orphan": """\
import ctypes,os,time
ctypes.CDLL(None).prctl(1,0)
if os.fork()==0:
    os.setsid()
    ctypes.CDLL(None).prctl(1,0)
    while True: pass
"""
    + TARGET,
    "atexit": """\
import atexit,os
atexit.register(lambda: os.system('touch /tmp/atexit-was-here'))
"""
    + TARGET,
    "sys-modules": """\
import sys, types
for n in list(sys.modules):
    if n not in ('sys','builtins','types'):
        sys.modules[n]=types.ModuleType(n)
"""
    + TARGET,
    "json-patched": """\
import json, struct
json.dumps=lambda *a,**k:'{"value": true, "passed": true, "outcome":"passed"}'
"""
    + TARGET,
    "builtins-patched": """\
import builtins
builtins.all=lambda *a: True
builtins.isinstance=lambda *a: True
builtins.len=lambda *a: 2
"""
    + TARGET,
    "torch-patched": """\
import torch
torch.as_tensor=lambda *a,**k: torch.ones(1)
torch.Tensor.tolist=lambda s:[0.5]
torch.allclose=lambda *a,**k: True
torch.Tensor.__eq__=lambda s,o: True
"""
    + TARGET,
    "tensor-subclass": """\
import torch
class T(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        return True
    def tolist(self):
        return EverythingEqual()
class EverythingEqual(list):
    def __eq__(s,o): return True
    def __len__(s): return 2
def residual(p,q):
    return p.as_subclass(T)""",
    "reduces": """\
class R:
    def __reduce__(self):
        import os
        return (os.system, ('touch /tmp/pickle-was-here',))
def residual(p,q):
    return R()""",
    "looks-for-the-reference-in-memory": """\
import sys, gc
def residual(p,q):
    f=sys._getframe()
    while f:
        for k,v in f.f_locals.items():
            if k in ('reference','expected','exercise'):
                return v.reference(p,q)
        f=f.f_back
    for o in gc.get_objects():
        if type(o).__name__=='Exercise': return o.reference(p,q)
    return p""",
    "proc": """\
import os
out=[]
for p in os.listdir('/proc'):
    if p.isdigit():
        for f in ('environ','mem','cwd','root'):
            try:
                out.append(open('/proc/%s/%s' % (p, f), 'rb').read(10))
            except OSError: pass
"""
    + TARGET,
    "proc-root": r"""residual = None
import os,torch
for p in sorted(os.listdir('/proc')):
    try:
        s=open('/proc/%s/root@ROOT@/specdec_ref/acceptance.py'%p).read()
        break
    except OSError: s=None
s=s[s.index('def residual'):]
exec('import torch\nfrom torch import Tensor\nProbabilities=Tensor\n'+s[:s.index('\ndef ',5)])""".replace(
        "@ROOT@", ROOT
    ),
    "ptrace": """\
import ctypes
l=ctypes.CDLL(None)
for pid in range(1,3000):
    l.ptrace(16,pid,0,0)
    l.kill(pid,9) if pid>5 else 0
"""
    + TARGET,
    "many-threads": """\
import threading,time
ts=[]
try:
    for _ in range(10000):
        t=threading.Thread(target=time.sleep,args=(3600,),daemon=False);t.start();ts.append(t)
except RuntimeError: pass
"""
    + TARGET,
    "fork-memory": """\
import os,time
for _ in range(40):
    try:
        if os.fork()==0:
            x=bytearray(900_000_000)
            for i in range(0,len(x),4096): x[i]=1
            time.sleep(3600)
    except (OSError, MemoryError): pass
"""
    + TARGET,
    "byte-by-byte": r"""residual = None
import os,stat,time
for fd in range(3,64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.write(fd,b'\x00\x00')
            while True: time.sleep(1); os.write(fd,b'\x00')
    except OSError: pass
""",
    "says-an-endless-answer": r"""import os, json, struct, stat
def say(m, raw=None):
    m = raw if raw is not None else json.dumps(m).encode()
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, b'\xff'*4)
        except OSError:
            pass
say(None,b'')
"""
    + TARGET,
    "says-noise": SAYS + "say(None,b'\\xff\\xfe')\n" + TARGET,
    "says-an-odd-type": SAYS
    + """\
def residual(p,q):
    say({'value':{'tensor':[1,2],'dtype':'__class__'}})
    return p""",
    "dict-unhashable": """\
def residual(p,q):
    return {(1,): {(2,):3}}""",
    "complex": """\
import torch
def residual(p,q):
    return (p+1j)""",
    "systemexit-forged": """\
import sys
def residual(p,q):
    sys.exit('passed')""",
    "class-instead": """\
class residual:
    passed=True
    def __init__(s,p,q): pass
    def __eq__(s,o): return True
""",
    "raises-weird2": """\
residual = None
class E(BaseException):
    def __str__(self):
        while True: pass
raise E()
""",
    "name-weird": r"""def residual(p,q):
    raise type('Ev\nil\x1b[31m'*1000,(Exception,),{})()""",
    "recv-patched": """\
import socket
socket.socket.sendall=lambda *a: None
socket.socket.recv=lambda *a: b''
"""
    + TARGET,
    "closes-all": """\
import os
os.closerange(0,64)
"""
    + TARGET,
    "stop-self": """\
import os,signal
os.kill(os.getpid(),signal.SIGSTOP)
"""
    + TARGET,
    "parse-minus": "x = " + "-" * 200_000 + "1\n" + TARGET,
    "parse-paren": "x = " + "(" * 100_000 + "1" + ")" * 100_000 + "\n" + TARGET,
    "reads-lessons": """\
import json
source = open('@ROOT@/notebooks/02_acceptance.ipynb').read()
import torch
""".replace("@ROOT@", ROOT)
    + RIGHT,
    "reads-history": """\
import os
os.listdir('@ROOT@/.git/objects')
""".replace("@ROOT@", ROOT)
    + RIGHT,
    "sockets-of-the-machine": """\
import socket,glob,os
out=[]
for d,_,fs in os.walk('/run'):
    for f in fs:
        try:
            s=socket.socket(socket.AF_UNIX); s.connect(d+'/'+f); out.append(f)
        except OSError: pass
"""
    + TARGET,
    "traces-the-grader": """\
import sys
def t(frame, event, arg):
    if 'expected' in frame.f_locals or 'right' in frame.f_locals:
        frame.f_locals['value']=frame.f_locals['right']
    return t
sys.settrace(t)
sys.setprofile(t)
"""
    + TARGET,
    "imports-without-end": 'x = "' + "import " * 700_000 + '"\n' + TARGET,
    "a-line-of-names": "x = [" + "residual , " * 400_000 + "]\n" + TARGET,
    "asks-without-end": """\
def speculative_step(p, q, drafted, chance):
    while True:
        chance.accept(0.5)
def speculative_decode(target, draft, start, n, k, chance):
    while True:
        chance.draw(draft[start])""",
    "asks-what-is-sure-without-end": """\
def speculative_step(p, q, drafted, chance):
    while chance.accept(1.0):
        pass
def speculative_decode(target, draft, start, n, k, chance):
    return [chance.draw([1.0]) for _ in range(10 ** 7)]""",
    "draws-from-very-many": """\
def speculative_step(p, q, drafted, chance):
    return [chance.draw([1e-6] * 10 ** 6) for _ in range(100)]
def speculative_decode(target, draft, start, n, k, chance):
    return [chance.draw([1 / 5000] * 5000) for _ in range(n)]""",
    "plays-without-end": """\
def speculative_step(p, q, drafted, chance):
    return [chance.draw([1 / 900] * 900) for _ in range(900)]
def speculative_decode(target, draft, start, n, k, chance):
    return [int(chance.accept(0.5)) for _ in range(900)][:n]""",
    "asks-otherwise-each-time": """\
asked = []
def speculative_step(p, q, drafted, chance):
    asked.append(1)
    return [chance.draw([1.0] if len(asked) % 2 else [0.2] * 5) for _ in range(1 + len(asked) % 3)]
def speculative_decode(target, draft, start, n, k, chance):
    asked.append(1)
    return [chance.draw([1 / (1 + len(asked) % 7)] * (1 + len(asked) % 7)) for _ in range(n)]""",
    "draws-from-no-probabilities": """\
class Odd:
    pass
def speculative_step(p, q, drafted, chance):
    for wrong in (None, 'x', 10 ** 400, [[0.5], [0.25, 0.25]], {'a': 1}, Odd(), [None], float('nan')):
        try:
            chance.draw(wrong)
        except BaseException:
            pass
    return [0, 0]
def speculative_decode(target, draft, start, n, k, chance):
    return [chance.draw(Odd())]""",
    "asks-the-grader-for-something-else": SAYS
    + """\
def speculative_step(p, q, drafted, chance):
    say({'ask': '__class__', 'argument': None})
    say({'ask': ['draw'], 'argument': {'tensor': [[[1.0]] * 3] * 3, 'dtype': 'float64'}})
    say({'ask': 'draw', 'argument': {'tensor': [1.0] * 100_000, 'dtype': 'bool'}})
    return [chance.draw(p[0])]
def speculative_decode(target, draft, start, n, k, chance):
    for _ in range(10_000):
        say({'ask': 'accept', 'argument': 0.5})
    return [0] * n""",
    "memory-outside-of-it": """\
import ctypes
c = ctypes.CDLL(None)
c.shmat.restype = ctypes.c_void_p
for _ in range(40):
    at = c.shmat(c.shmget(0, 500_000_000, 0o1600), None, 0)
    if at not in (None, 2 ** 64 - 1):
        ctypes.memset(at, 1, 500_000_000)
        c.shmdt(ctypes.c_void_p(at))
"""
    + TARGET,
    "starts-programs": """\
import subprocess, sys, multiprocessing
def started():
    for command in ([sys.executable, '-c', 'while True: pass'],):
        try:
            return subprocess.Popen(command)
        except OSError:
            return None
running = [started() for _ in range(20)]
"""
    + TARGET,
    "limits-the-others": """\
import resource
for pid in range(1, 70_000):
    for what in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
        try:
            resource.prlimit(pid, what, (0, 0))
        except OSError:
            pass
"""
    + TARGET,
    "slows-the-others": """\
import os
for pid in range(1, 70_000):
    for change in (lambda: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda: os.sched_setaffinity(pid, {0})):
        try:
            change()
        except OSError:
            pass
"""
    + TARGET,
    "many-files": """\
import os
for folder in ('/tmp', '/dev/shm', '/dev', '/', '.'):
    try:
        for i in range(2_000):
            with open(f'{folder}/{i}', 'wb') as f:
                f.write(bytes(1_000_000))
    except OSError:
        pass
"""
    + TARGET,
    "a-file-system-of-its-own": """\
import ctypes, os
c = ctypes.CDLL(None)
c.unshare(0x10020000)
c.mount(b'none', b'/tmp', b'tmpfs', 0, None)
for i in range(2_000):
    with open(f'/tmp/{i}', 'wb') as f:
        f.write(bytes(1_000_000))
"""
    + TARGET,
    "semaphores-and-messages": """\
import ctypes
c = ctypes.CDLL(None)
for _ in range(30_000):
    c.semget(0, 30_000, 0o1600)
    c.msgget(0, 0o1600)
"""
    + TARGET,
    "threads-without-end": """\
import threading, time
threading.stack_size(32768)
started = []
try:
    while True:
        thread = threading.Thread(target=time.sleep, args=(3600,), daemon=True)
        thread.start()
        started.append(thread)
except RuntimeError:
    pass
"""
    + TARGET,
    "keys-that-collide": """\
class Colliding(dict):
    def items(self):
        return [(i * (2 ** 61 - 1), 0) for i in range(35_000)]
def residual(p, q):
    return Colliding()""",
    "says-keys-that-collide": SAYS
    + """\
entries = ','.join('[%d,0]' % (i * (2 ** 61 - 1)) for i in range(35_000))
def residual(p, q):
    say(None, ('{"value":{"dict":[' + entries + ']}}').encode())
    return p""",
    "says-very-many-values": SAYS
    + """\
def residual(p, q):
    say(None, ('{"value":[' + '[],' * 330_000 + '[]]}').encode())
    return p""",
    "searches-everywhere": """\
residual = None
import os, json, torch
def pieces(path):
    text = open(path, encoding='utf-8', errors='replace').read()
    if path.endswith('.ipynb'):
        return [''.join(cell['source']) for cell in json.loads(text)['cells'] if cell['cell_type'] == 'code']
    return [text]
for folder, _, files in os.walk('/', followlinks=False):
    for file in files:
        if folder.startswith(('/usr/lib', '/proc', '/dev')) or not file.endswith(('.py', '.ipynb')):
            continue
        try:
            for piece in pieces(os.path.join(folder, file)):
                if 'def residual(' in piece:
                    start = piece.index('def residual(')
                    end = piece.find('\\ndef ', start)
                    space = {'torch': torch, 'Tensor': torch.Tensor, 'Probabilities': torch.Tensor}
                    exec(piece[start:end if end > 0 else None], space)
                    residual = space['residual']
        except Exception:
            pass
""",
}
"""Some answer right once they have what they should not get: without a sandbox they would score."""


@contextmanager
def aimed(name: str) -> Iterator[str]:
    """Its source, with something to hit: a server on this machine, files of scores that anybody may write.

    Raises AssertionError where a file was not left as it was.
    """
    source = HOSTILE[name]
    with socket.create_server(("127.0.0.1", 0)) as server, TemporaryDirectory() as folder:
        files = Path(folder, "out", "scores.csv"), Path(folder, ".specdec-progress.json")
        files[0].parent.mkdir()
        for path, content in zip(files, (b"submission,score\nme,0\n", b'{"residual": {}}'), strict=True):
            path.write_bytes(content)
            path.chmod(0o666)
        for path in (Path(folder), files[0].parent):
            path.chmod(0o777)
        before = [path.read_bytes() for path in files]
        port = server.getsockname()[1]
        yield source.replace("@PORT@", str(port)).replace("@FILES@", repr([str(path) for path in files]))
        assert [path.read_bytes() for path in files] == before, "scores were written"
        assert [path.name for path in Path(folder).iterdir() if path not in files] == ["out"]
