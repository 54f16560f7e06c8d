"""`bbt compare`: methods x tasks x seeds from one plan; what is missing is run, then the tables and plots are made.

plan          the YAML file -> cells, one a run and budget
work          cells -> finished run folders, by an executor
job           how one run is made, wherever that is
processes, worker
              the executor of processes on this machine, and such a process
cluster, cluster_worker, carried
              the executor of a Ray cluster, a worker there, and what travels between them
finished      run folders -> what each cell has come to
comparison    a plan with what has finished of it: a table's rows and columns
scores, costs, published
              finished cells -> tables of test scores, of costs, and of published figures
samples       what is written on the first test rows, where the answers are texts
significance  a paired test over seeds, in words
validation    k-fold cross-validation: which settings dev rows choose
plots, page   curves and spreads as SVG; everything on one HTML page
report        all of it, written down
"""
