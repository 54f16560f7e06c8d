import json,sys
from backends.bench.measure import bench
from backends.bench.workload import Workload
import yaml
kw=dict(a.split("=",1) for a in sys.argv[1:]); kw={k:yaml.safe_load(v) for k,v in kw.items()}
extra={k:kw.pop(k) for k in ("against","plain_queries","repeats") if k in kw}
print(json.dumps(bench(Workload(**kw),**extra),indent=1))
