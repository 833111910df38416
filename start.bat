@echo off
rem Double-click this file: it sets everything up the first time and opens the window.
chcp 65001 >nul
cd /d "%~dp0"
if exist ".venv\ace_setup.json" if exist ".venv\Scripts\pythonw.exe" goto ready
where py >nul 2>nul && (
    for %%v in (3.12 3.11 3.13 3.10) do (
        py -%%v -c "" >nul 2>nul && (
            py -%%v start.py %*
            goto ended
        )
    )
)
where python >nul 2>nul && (
    python start.py %*
    goto ended
)
echo Python was not found. Install Python 3.12 (64-bit) from https://www.python.org/downloads/
echo and tick "Add python.exe to PATH" there. Then double-click this file again.
echo 没有找到 Python。请从 https://www.python.org/downloads/ 安装 Python 3.12（64 位），
echo 安装时勾选 "Add python.exe to PATH"，然后再次双击本文件。
pause
exit /b 2
:ready
rem The environment exists: let it check itself and open the window.
".venv\Scripts\python.exe" start.py %*
:ended
if errorlevel 1 pause
